"""Everything that can be known to be wrong before any training: data, models, stages, the whole space."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from search.contradictions import budget_notes, final_runs
from search.curves import Curves, Recorded, check_curves, make_curves
from search.earlier import EarlierStudy
from search.objective import Objective, parse_objectives
from search.paths import storage_folder
from search.planning import enumerate_grid, final_notes, search_notes
from search.recipes import TEACHER_RECIPES, family_recipe
from search.settings import Settings, baseline_params, check_batch, pinned_fields, trial_config
from search.space import SAMPLES, SearchSpace
from search.stored import check_store, store_notes
from search.students import Students, student_of
from search.study import SCALES, Study
from search.warm_start import fitting, take_over
from trainables.config import Distillation, TrialConfig, data_fields, fields_read
from trainables.distillers import DISTILLERS, distillers_of
from trainables.errors import InputError

SIZES = {"cifar100": (100, 500), "imagenet": (1000, 1281)}  # the real data's classes, and training images of each


@dataclass
class Plan:
    """What preflight found out, and all that the study needs to start."""

    settings: Settings
    space: SearchSpace
    students: Students  # all that a trial may have
    family: str  # of the settings' own student, as is what follows
    recipe: dict[str, Any]  # resolved
    teacher_recipe: dict[str, Any]  # with teacher_source=fit
    available: list[int]  # the student's stages
    base: TrialConfig  # the settings without anything searched
    baselines: dict[str, TrialConfig]
    drawn: list[TrialConfig]  # what trials may look like: the first guesses and random draws
    data: str  # what the data are, in words
    data_fingerprint: str
    holdout_images: int
    test_images: int
    train_images: int
    classes: list[str]
    objectives: list[Objective]
    pairs: list[str] = field(default_factory=list)  # the scale's, by name
    grid: list[dict[str, Any]] | None = None  # with sampler=grid: every point of the space, in the order they are tried
    points: int | None = None  # with sampler=grid or brute: how many the space has, where they can be counted
    priors: list[Any] = field(default_factory=list)  # other studies' trials, as Optuna has them, to learn from
    warm: list[dict[str, Any]] = field(default_factory=list)  # those of the first guesses that other studies gave
    searched: dict[str, int] = field(default_factory=dict)  # those studies' trials, of a study that begins with them
    notes: list[str] = field(default_factory=list)
    curves: Curves | None = None  # of a simulated study, in place of training

    def compose(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A trial's whole configuration from what the space returned."""
        return self.students.compose(self.settings, fields).model_dump()

    @property
    def trials(self) -> int:
        """How many trials there are to run: those asked for, or all points of a smaller space that is tried whole."""
        return self.settings.trials if self.points is None else min(self.settings.trials, self.points)

    @property
    def distillers(self) -> list[str]:
        """Those that trials may have."""
        return sorted({config.distiller for config in self.drawn})

    @property
    def final_count(self) -> int:
        """How many runs the final has, if as many trials complete."""
        return final_runs(self.settings, self.trials, len({student_of(vars(config)) for config in self.drawn}))

    def trial_count(self) -> int:
        """Trials, baselines with their own searches, and finalists together."""
        return self.trials + len(self.baselines) * (1 + self.settings.tune_baselines) + self.final_count


def preflight(
    study: Study,
    settings: Settings,
    *,
    earlier: list[EarlierStudy] = (),
    kept: list[dict[str, Any]] = (),
    dry_run: bool = False,
    named: set[str] = frozenset(),
) -> tuple[Plan, Any]:
    """Loads the data, builds both models, checks stages, shapes, baselines and the whole space.

    Args:
        earlier: other studies, whose best trials are tried first where this space has them.
        kept: the guesses that they gave, of a study that goes on; what this space has of them is tried first.
        dry_run: take synthetic images and random weights where the scale's defaults are not at hand.
        named: the fields the user gave; those must exist, in a dry run too.

    Returns:
        The plan, and the data's splits.

    Raises:
        InputError: what is wrong, each problem in one line.
    """
    notes: list[str] = []
    curves = None
    if settings.simulate:
        from search.simulation import without_models

        curves = make_curves(settings.simulate, storage_folder(settings.storage))
        splits, students = without_models(settings, notes)
        teacher_family = students.of({}).family
    else:
        splits = _splits(settings, dry_run and not named & {"data", "data_dir"}, notes)
        if settings.finalists and not splits.test:
            raise InputError(
                f"finalists: they are judged on a test split, and data={settings.data!r} has none and classes too "
                "small to spare one; give a test split, or --set finalists=0"
            )
        num_classes = len(splits.classes)
        from trainables.metrics import own_metrics

        own_metrics(settings.metrics)
        check_store(settings, num_classes)
        students = Students(settings, lambda one: _build(one, "student", num_classes, dry_run, named, notes))
        students.of({})
        settings, teacher_family = _teacher(settings, num_classes, dry_run, named, notes)
    student = students.of({})
    recipe, available = student.recipe, student.available
    teacher_recipe = {
        "epochs": settings.epochs,
        **family_recipe(settings.recipes, teacher_family, settings.epochs, settings.full_epochs)[0],
        **TEACHER_RECIPES[settings.recipes],
        **settings.teacher_recipe,
    }
    _explicit_stages(settings, available)
    if set(settings.stages) - set(available):
        few = f"stages {_comma(available)} only; the searched set is cut to them"
        none = "no stages, as none of its modules gives a feature map; its outputs alone are compared"
        notes.append(f"{settings.student} has {few if available else none}")
        settings = settings.model_copy(update={"stages": available})
    if settings.scale == SCALES[0] and settings.data != "digits":
        budget = f"{settings.labels_per_class} labels a class (all: --set labels_per_class=null)"
        labels = budget if settings.labels_per_class else "all labels"
        notes.append(
            f"scale {settings.scale}: {settings.img_size} pixels, {labels}, small models; the real ones: --scale "
            + " or ".join(name for name in study.scales if name != settings.scale)
        )
    space = SearchSpace(study.space, settings.search, pinned_fields(settings, recipe))

    def composed(fields: dict[str, Any]) -> TrialConfig:
        return students.compose(settings, fields)

    drawn = space.check(settings.seed, composed)
    taken = take_over(earlier, space, composed, settings, splits.fingerprint)
    notes += taken.notes
    warm = list(_distinct([*fitting(kept, space, composed), *taken.guesses]))
    if taken.guesses and len(warm) > settings.trials:
        notes.append(
            f"of these {len(warm)} guesses {settings.trials} can be tried; --resume with more --trials tries the others"
        )
    guesses = list(warm)
    guesses += filter(None, [space.guess(guess, composed) for guess in settings.first_guesses])
    baselines = _baselines(settings, recipe, available)
    drawn = [composed(space.fields(guess)) for guess in guesses] + drawn
    _read_by_some_trial(settings, drawn, notes)
    grid = enumerate_grid(space, settings, composed, guesses) if settings.sampler == "grid" else None
    points = space.count(settings.seed) if settings.sampler == "brute" else grid and len(grid)
    if points is not None and points < settings.trials:
        what = "the grid" if grid else "the space"
        notes.append(f"{what} has {points} points, so there are no more trials, though {settings.trials} were asked")
    notes += search_notes(settings, space)
    objectives = parse_objectives(settings.objectives, settings.metrics)
    if isinstance(curves, Recorded):
        notes.append(curves.replayed({name: config.distiller for name, config in baselines.items()}))
    if curves:
        samples = space.samples(SAMPLES, settings.seed)
        check_curves(curves, [(composed(fields).model_dump(), params) for params, fields in samples], objectives)
    notes += budget_notes(settings, objectives[0]) + final_notes(settings) + ([] if curves else store_notes(drawn))
    plan = Plan(
        settings=settings.model_copy(update={"first_guesses": list(_distinct(guesses))}),
        space=space,
        students=students,
        family=student.family,
        recipe=recipe,
        teacher_recipe=teacher_recipe,
        available=available,
        base=trial_config(settings, recipe, {}),
        baselines=baselines,
        drawn=drawn,
        data=splits.description,
        data_fingerprint=splits.fingerprint,
        holdout_images=len(splits.holdout),
        test_images=len(splits.test) if splits.test else 0,
        train_images=len(splits.train),
        classes=splits.classes,
        objectives=objectives,
        pairs=list(study.scales[settings.scale].pairs),
        grid=grid,
        points=points,
        priors=taken.priors,
        warm=warm,
        searched=taken.searched,
        notes=notes,
        curves=curves,
    )
    return plan, splits


def _splits(settings: Settings, may_be_synthetic: bool, notes: list[str]):
    from trainables.data import load_splits, synthetic_splits

    fields = data_fields(settings)
    try:
        return load_splits(fields)
    except InputError as error:
        if not may_be_synthetic:
            raise
        notes.append(f"the scale's data are not at hand ({error}); synthetic images stand in")
        return synthetic_splits(fields, *SIZES.get(settings.scale, (10, 200)))


def _build(settings: Settings, role: str, num_classes: int, dry_run: bool, named: set[str], notes: list[str]):
    from trainables.build import build_model

    source = getattr(settings, f"{role}_source")
    if source == "fit":
        source = "pretrained" if settings.teacher_fit_from == "pretrained" else "scratch"
    build = dict(
        num_classes=num_classes,
        img_size=settings.img_size,
        source=source,
        weights=getattr(settings, f"{role}_weights"),
        kwargs=getattr(settings, f"{role}_kwargs"),
        field=role,
        taps=settings.taps if role == "student" else "ofakd",
    )
    try:
        if role == "teacher" and settings.teacher_source == "pretrained":
            _knows_the_classes(settings.teacher, num_classes)
        return build_model(getattr(settings, role), **build)
    except InputError as error:
        # A dry run goes without the weights that only the scale asks for, but never without a model that builds.
        asked = {role, f"{role}_source", f"{role}_weights", "teacher_fit_from"}
        if not dry_run or source != "pretrained" or named & asked:
            raise
        model = build_model(getattr(settings, role), **{**build, "source": "scratch"})
        notes.append(f"{error}; random weights stand in")
        return model


def _teacher(settings: Settings, num_classes: int, dry_run: bool, named: set[str], notes: list[str]):
    """The settings with where the teacher's fitting starts, and the teacher's family; builds the teacher.

    Fitting starts from pretrained weights where timm has them for this very model and they can be had.
    """
    from trainables.build import family

    if settings.teacher_source != "fit" or settings.teacher_fit_from != "auto":
        return settings, family(_build(settings, "teacher", num_classes, dry_run, named, notes))
    import timm

    if timm.is_model(settings.teacher) and timm.models.is_model_pretrained(settings.teacher):
        pretrained = settings.model_copy(update={"teacher_fit_from": "pretrained"})
        try:
            return pretrained, family(_build(pretrained, "teacher", num_classes, False, named, notes))
        except InputError:
            notes.append(f"no pretrained weights of {settings.teacher} at hand: it is fitted from scratch")
    scratch = settings.model_copy(update={"teacher_fit_from": "scratch"})
    return scratch, family(_build(scratch, "teacher", num_classes, dry_run, named, notes))


def _knows_the_classes(teacher: str, num_classes: int) -> None:
    import timm

    known = timm.get_pretrained_cfg(teacher).num_classes if timm.is_model(teacher) else num_classes
    if known not in (None, num_classes):
        raise InputError(
            f"teacher: timm's weights of {teacher} know {known} classes, the data have {num_classes}; give weights for "
            "these data (--set teacher_source=checkpoint teacher_weights=PATH) or have it fitted to them "
            "(--set teacher_source=fit)"
        )


def _explicit_stages(settings: Settings, available: list[int]) -> None:
    missing = sorted(set(settings.stages) - set(available)) if "stages" in settings.model_fields_set else []
    if missing:
        raise InputError(
            f"stages: {_comma(settings.stages)} names stage {_comma(missing)}, but {settings.student} has "
            f"{_comma(available) or 'none'}"
        )


def _baselines(settings: Settings, recipe: dict[str, Any], available: list[int]) -> dict[str, TrialConfig]:
    configs = {}
    for baseline in settings.baselines:
        name, params = baseline_params(baseline)
        _explicit_stages(settings.model_copy(update={"stages": params.get("stages", [])}), available)
        configs[name] = trial_config(settings, recipe, params)
        check_batch(configs[name], settings)
    return configs


def _read_by_some_trial(settings: Settings, drawn: list[TrialConfig], notes: list[str]) -> None:
    """Refuses a setting that no trial's distiller reads, and tells of what is searched in vain."""
    unread = set(Distillation.model_fields).difference(
        *(fields_read(config.distiller, config.curriculum_temperature) for config in drawn)
    )
    owners = {name: owner for owner, one in DISTILLERS.items() for name in one.Fields.model_fields}
    problems = []
    for name in sorted({name.partition("@")[0] for name in [*settings.pinned, *settings.search]} & unread):
        if name == "stages" and not settings.stages:
            continue  # none are asked for, and none there are
        fix = f"add --set distiller={owners[name]}, or leave it out" if name in owners else "leave it out"
        if name == "temperature" and settings.curriculum_temperature:
            fix = "it is learned with curriculum_temperature, so leave one of them out"
        problems.append(f"{name}: no trial reads it; {fix}")
    for distiller in {config.distiller for config in drawn} - {config.distiller for config in drawn if config.stages}:
        if any(one.stage_terms and one.stage_terms == one.weights.keys() for one in distillers_of(distiller)):
            problems.append(f"stages: distiller {distiller} compares stages and no trial has one; choose some")
    if problems:
        raise InputError(problems)
    varied = sorted(name for name in unread if len({str(getattr(config, name)) for config in drawn}) > 1)
    if varied:
        notes.append(
            f"the space searches {_comma(varied)}, which no trial reads; spaces/distiller_comparison.py searches what "
            "each distiller has: --set search.distiller=NAME"
        )


def _distinct(guesses: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Without repetitions: overrides make guesses alike."""
    seen = []
    for guess in guesses:
        if guess not in seen:
            seen.append(guess)
            yield guess


def _comma(values) -> str:
    return ", ".join(str(value) for value in values)
