"""Everything that can be known to be wrong before any training: data, models, stages, space; and what it will cost."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from search.recipes import RECIPES, TEACHER_RECIPES
from search.settings import Settings, baseline_params, compose, trial_config
from search.space import SearchSpace
from search.study import Study
from trainables.config import DataFields, TrialConfig
from trainables.errors import InputError

TIMED_STEPS = 3


@dataclass
class Plan:
    """What preflight found out, and all that the study needs to start."""

    settings: Settings
    space: SearchSpace
    family: str
    recipe: dict[str, Any]  # the student's, resolved
    teacher_recipe: dict[str, Any]  # with teacher_source=fit
    available: list[int]  # the student's stages
    base: TrialConfig  # the settings without anything searched
    baselines: dict[str, TrialConfig]
    data: str  # what the data are, in words
    data_fingerprint: str
    holdout_images: int
    train_images: int
    num_classes: int
    notes: list[str] = field(default_factory=list)

    def compose(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A trial's whole configuration from what the space returned."""
        return compose(self.settings, self.recipe, self.available, fields).model_dump()

    def trial_count(self) -> int:
        """Trials and baselines together."""
        return self.settings.trials + len(self.baselines)


def preflight(study: Study, settings: Settings, *, dry_run: bool = False, named: set[str] = frozenset()) -> Plan:
    """Loads the data, builds both models, checks stages, shapes, baselines and the whole space.

    Args:
        dry_run: take synthetic images and random weights where the scale's defaults are not at hand.
        named: the fields the user gave; those must exist, in a dry run too.

    Raises:
        InputError: what is wrong, each problem in one line.
    """
    notes: list[str] = []
    splits = _splits(settings, dry_run and not named & {"data", "data_dir"}, notes)
    num_classes = len(splits.classes)
    student = _build(settings, "student", num_classes, dry_run, named, notes)
    settings = _resolve_fit_source(settings, notes)
    teacher = _build(settings, "teacher", num_classes, dry_run, named, notes)

    from trainables.build import family
    from trainables.student import available_stages

    available = available_stages(student, settings.taps)
    kind = family(student) if settings.family == "auto" else settings.family
    recipe = {**RECIPES[settings.recipes][kind], **settings.recipe}
    _explicit_stages(settings, available)
    if set(settings.stages) - set(available):
        notes.append(f"{settings.student} has stages {_comma(available)} only; the searched set is cut to them")
        settings = settings.model_copy(update={"stages": available})
    base = trial_config(settings, recipe, {})
    plan = Plan(
        settings=settings,
        space=SearchSpace(study.space, settings.search),
        family=kind,
        recipe=recipe,
        teacher_recipe={
            "epochs": settings.epochs,
            **RECIPES[settings.recipes][family(teacher)],
            **TEACHER_RECIPES[settings.recipes],
            **settings.teacher_recipe,
        },
        available=available,
        base=base,
        baselines=_baselines(settings, recipe, available),
        data=splits.description,
        data_fingerprint=splits.fingerprint,
        holdout_images=len(splits.holdout),
        train_images=len(splits.train),
        num_classes=num_classes,
        notes=notes,
    )
    plan.space.check(settings, lambda fields: compose(settings, recipe, available, fields))
    _one_batch(plan)
    return plan


def estimate(plan: Plan, progress: Callable[[str], None] = lambda text: None) -> dict[str, float]:
    """What the study will cost, from timed steps of a trial with all stages on this machine's own device.

    Returns:
        `step_s`, `steps_per_epoch`, `trial_s` (full length), `study_s` (all trials full length) and `study_min_s` (only
        the share that ASHA trains at its reduction factor), both over `lanes`; the teacher's fitting is not counted.
    """
    progress("timing a step")
    config = plan.base.model_copy(update={"stages": plan.available, "eps": 1.0})
    step = _stepper(plan, config, min(config.batch_size, plan.train_images))
    step()
    begun = time.perf_counter()
    for _ in range(TIMED_STEPS):
        step()
    step_s = (time.perf_counter() - begun) / TIMED_STEPS
    steps = max(1, plan.train_images // config.batch_size)
    trial_s = step_s * steps * config.epochs
    lanes = plan.settings.concurrency or 1
    baselines, trials = len(plan.baselines), plan.settings.trials
    kept = 1.0 if plan.settings.scheduler == "none" else _asha_share(plan.settings)
    return {
        "step_s": step_s,
        "steps_per_epoch": steps,
        "trial_s": trial_s,
        "study_s": trial_s * (trials + baselines) / lanes,
        "study_min_s": trial_s * (trials * kept + baselines) / lanes,
        "lanes": lanes,
    }


def _asha_share(settings: Settings) -> float:
    """The share of all epochs that ASHA trains where each rung keeps one in `reduction_factor`."""
    trained, alive, at = 0.0, 1.0, 0
    rung = min(settings.grace_epochs, settings.epochs)
    while at < settings.epochs:
        trained += alive * (min(rung, settings.epochs) - at)
        at, rung, alive = (
            min(rung, settings.epochs),
            rung * settings.reduction_factor,
            alive / settings.reduction_factor,
        )
    return trained / settings.epochs


def _splits(settings: Settings, may_be_synthetic: bool, notes: list[str]):
    from trainables.data import load_splits, synthetic_splits

    fields = DataFields(**settings.model_dump(include=set(DataFields.model_fields)))
    try:
        return load_splits(fields)
    except InputError as error:
        if not may_be_synthetic:
            raise
        notes.append(f"the scale's data are not at hand ({error}); synthetic images stand in")
        return synthetic_splits(fields, {"cifar100": 100, "imagenet": 1000}.get(settings.scale, 10))


def _build(settings: Settings, role: str, num_classes: int, dry_run: bool, named: set[str], notes: list[str]):
    from trainables.build import build_model

    source = getattr(settings, f"{role}_source")
    build = dict(
        num_classes=num_classes,
        img_size=settings.img_size,
        source="scratch" if source == "fit" else source,
        weights=getattr(settings, f"{role}_weights"),
        kwargs=getattr(settings, f"{role}_kwargs"),
        field=role,
    )
    try:
        return build_model(getattr(settings, role), **build)
    except InputError as error:
        # A dry run goes without the weights that only the scale asks for, but never without a model that builds.
        if not dry_run or source != "pretrained" or named & {f"{role}_source", f"{role}_weights"}:
            raise
        model = build_model(getattr(settings, role), **{**build, "source": "scratch"})
        notes.append(f"{error}; random weights stand in")
        return model


def _resolve_fit_source(settings: Settings, notes: list[str]) -> Settings:
    """Where the teacher's fitting starts: pretrained weights where timm has them for this very model and they load."""
    if settings.teacher_source != "fit" or settings.teacher_fit_from != "auto":
        return settings
    import timm

    start = "scratch"
    if timm.is_model(settings.teacher) and timm.models.is_model_pretrained(settings.teacher):
        from trainables.build import build_model

        try:
            kwargs = settings.teacher_kwargs
            build_model(
                settings.teacher,
                num_classes=2,
                img_size=settings.img_size,
                source="pretrained",
                kwargs=kwargs,
                field="teacher",
            )
            start = "pretrained"
        except InputError:
            notes.append(f"no pretrained weights of {settings.teacher} at hand: it is fitted from scratch")
    return settings.model_copy(update={"teacher_fit_from": start})


def _explicit_stages(settings: Settings, available: list[int]) -> None:
    missing = sorted(set(settings.stages) - set(available)) if "stages" in settings.model_fields_set else []
    if missing:
        raise InputError(
            f"stages: {_comma(settings.stages)} names stage {_comma(missing)}, but {settings.student} has "
            f"{_comma(available)}"
        )


def _baselines(settings: Settings, recipe: dict[str, Any], available: list[int]) -> dict[str, TrialConfig]:
    configs = {}
    for baseline in settings.baselines:
        name, params = baseline_params(baseline)
        _explicit_stages(settings.model_copy(update={"stages": params.get("stages", [])}), available)
        configs[name] = trial_config(settings, recipe, params)
    return configs


def _one_batch(plan: Plan) -> None:
    """One training step of a trial with all stages, so that shapes, optimizer and schedule are known to fit."""
    _stepper(plan, plan.base.model_copy(update={"stages": plan.available, "eps": 1.0}), 4)()


def _stepper(plan: Plan, config: TrialConfig, batch_size: int) -> Callable[[], None]:
    """A function that makes one distillation step on random images."""
    import torch

    from trainables.build import normalization
    from trainables.distillers import distillation_terms
    from trainables.loop import build_student
    from trainables.optim import make_optimizer, make_scheduler
    from trainables.teacher import Teacher, build_teacher

    device = torch.device("cuda" if plan.settings.gpus_per_trial and torch.cuda.is_available() else "cpu")
    student = build_student(config.model_copy(update={"student_source": "scratch"}), plan.num_classes).to(device)
    bare = build_teacher(config.model_copy(update={"teacher_source": "fit"}), plan.num_classes)
    teacher = Teacher(bare, *normalization(student.model)).to(device)
    optimizer = make_optimizer(student, config)
    make_scheduler(optimizer, config, steps_per_epoch=1)
    images = torch.randn(batch_size, 3, config.img_size, config.img_size, device=device)
    target = torch.randint(plan.num_classes, (batch_size,), device=device)

    def step() -> None:
        logits, stage_logits = student(images)
        terms = distillation_terms(config, logits, stage_logits, teacher(images), target)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _comma(values) -> str:
    return ", ".join(str(value) for value in values)
