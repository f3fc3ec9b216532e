"""From a space file and the command line to one checked set of settings; every error at once."""

import difflib
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, TypeAdapter, ValidationError, model_validator

from search.contradictions import budget_problems
from search.objective import parse_objectives
from search.paths import is_url
from search.study import SCALES, Study
from search.tracking.credentials import check_storage, has_webhook
from search.values import Part, parse_sets
from trainables.config import (
    DataFields,
    Distillation,
    JudgingFields,
    Recipe,
    RunFields,
    StudentFields,
    TeacherFields,
    TrialConfig,
)
from trainables.errors import InputError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of studies and baselines: names of folders
OWN = r"-\d+$|-seed\d+$|-as-"  # in the names of the runs that a study makes of its baselines
RESERVED = ("artifacts", "features", "teachers", "teacher_store", "mlflow.db")  # what else lies in the storage
SMOKE = {"trials": 3, "epochs": 2, "max_images": 64, "grace_epochs": 2, "finalists": 1, "seeds": 1}
SMOKE_RECIPE = {"batch_size": 16, "warmup_epochs": 0}


def _bytes(given: Any) -> int | None:
    """A size with its unit in bytes.

    Raises:
        ValueError: it is none.
    """
    if given is None:
        return None
    try:
        size = int(TypeAdapter(ByteSize).validate_python(given))
    except ValidationError:
        size = 0
    if size <= 0:
        raise ValueError("is no size; give one as 50GB or 500MiB")
    return size


Bytes = Annotated[int, BeforeValidator(_bytes)]


class Settings(DataFields, TeacherFields, StudentFields, Distillation, JudgingFields, RunFields):
    """All that decides a study; what a flag does not set is reached by `--set FIELD=VALUE`."""

    name: str = Field(pattern=NAME)
    space: str  # the space file's path
    scale: Literal["embedded", "cifar100", "imagenet"] = "embedded"
    pair: str | None = None  # which of the scale's pairs; None: the scale has just one
    smoke: bool = False
    recipes: Literal["embedded", "cifar100", "imagenet"] = "embedded"  # whose family defaults hold
    family: Literal["auto", "cnn", "token"] = "auto"  # the student's; auto looks at its layers
    recipe: dict[str, Any] = {}  # the student's recipe where it differs from its family's
    teacher_recipe: dict[str, Any] = {}  # the same, with teacher_source=fit
    epochs: int = Field(20, ge=1)  # each trial's length
    full_epochs: int | None = Field(None, ge=1)  # the recipe's length at full budget; None: its own
    objectives: list[str] = Field(["val/top1"], min_length=1)  # metrics; the first ranks trials and is scheduled by
    trials: int = Field(16, ge=1)  # in all, baselines not counted
    time_budget: float | None = Field(None, gt=0)  # seconds of the whole study, all its sessions together
    gpu_hours: float | None = Field(None, gt=0)  # the same for hours of GPUs that trials and the teacher's fitting hold
    money: float | None = Field(None, gt=0)  # the same for what those cost, in the currency of the price
    price_per_gpu_hour: float | None = Field(None, gt=0)
    total_epochs: int | None = Field(None, ge=1)  # the same for epochs of all trials together
    target: float | None = None  # of the first objective: the search ends when a complete trial reaches it
    patience: int | None = Field(None, ge=1)  # the search ends after so many ended trials without a better one
    seed: int = Field(0, ge=0)
    sampler: Literal["tpe", "random", "gp", "cmaes", "qmc", "nsga2", "nsga3", "grid", "brute"] = "tpe"
    scheduler: Literal["asha", "hyperband", "median", "none"] = "asha"
    reduction_factor: int = Field(3, ge=2)  # ASHA keeps one in so many at each rung
    brackets: int = Field(3, ge=1)  # of hyperband: trials are shared out to so many, each with a later first rung
    grace_epochs: int = Field(default_factory=lambda given: _grace_epochs(**given), ge=1)  # none is stopped before
    stopping_schedule: Literal["full", "rung"] = "full"  # the learning rate's: of full length, or anew at each rung
    finalists: int = Field(3, ge=0)  # the best trials that are trained again, with the baselines; 0: no final
    seeds: int = Field(3, ge=1)  # how often each finalist is trained again
    tune_baselines: int = Field(0, ge=0)  # trials of a search for each baseline, beside it as it is
    simulate: str | None = None  # learning curves in place of training: synthetic, a study's name, module:function
    concurrency: int | None = Field(None, ge=1)  # trials side by side; None: as many as fit
    workers_per_trial: int = Field(1, ge=1)
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_trial: float = Field(0.0, ge=0)
    priority: int = 0  # beside other studies of a cluster; the larger has its lanes first
    hang_factor: float | None = Field(20.0, gt=0)  # silent for so many median epochs, a trial hangs; None: never
    hang_min_s: float = Field(600.0, gt=0)  # and for so many seconds at least
    pack: int = Field(1, ge=1)  # how many of the trials side by side share a process, its batches and its GPU
    baselines: list[str | dict[str, Any]] = ["scratch", "kd"]
    first_guesses: list[dict[str, Any]] = []
    pinned: list[str] = []  # searchable fields that --set gave: they hold for every trial, whatever the space says
    search: dict[str, Any] = {}  # ranges by parameter, above the space's own: 1.0..2.0, a|b or a value
    warm_start: list[str] = []  # earlier studies whose best parameters are tried first
    storage: str = "runs"
    tracking_uri: str | None = None  # None: SQLite in the storage
    tracking_offline: bool = False  # a study may start while MLflow's server is away; `search/sync.py` writes later
    disk_budget: Bytes | None = None  # as 50GB, for the study and the teacher's answers: what nobody needs goes
    address: str | None = None  # of a running Ray cluster; None starts one here
    dashboard_port: int | None = Field(None, ge=1, le=65535)  # of Ray's dashboard; None: no dashboard
    notify: str | None = None  # told when the study ends or stalls: a command, a webhook, or env:NAME that has either
    notify_stalled_s: float | None = Field(3600.0, gt=0)  # without a report for so long it has stalled; None: not told

    @property
    def lanes(self) -> int:
        """How many processes (each of so many workers) train side by side."""
        return -(-(self.concurrency or 1) // self.pack)

    @property
    def gpus_per_lane(self) -> float:
        """The GPUs that one of them holds."""
        return self.gpus_per_trial * self.pack

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default_grace(cls, fields):
        return {name: value for name, value in fields.items() if name != "grace_epochs" or value is not None}


def _grace_epochs(epochs: int, scheduler: str, reduction_factor: int, brackets: int, **_: Any) -> int:
    """A third of a trial: distillation is slow to show what it is worth (Beyer et al., arXiv 2106.05237).

    Hyperband hedges against just that: its last bracket begins about there, each other one by the factor earlier.
    """
    grace = -(-epochs // 3)
    for _ in range(min(brackets - 1, grace) if scheduler == "hyperband" else 0):
        grace = max(1, grace // reduction_factor)
    return grace


SEARCHABLE = set(Distillation.model_fields) | set(Recipe.model_fields) - {"epochs"} | {"student", "student_kwargs"}
PARTED = ("recipe", "teacher_recipe", "search")  # fields that layers add to
FLAT_RECIPE = set(Recipe.model_fields) - {"epochs"}


def resolve(study: Study, flags: dict[str, Any], sets: list[str]) -> Settings:
    """Lays the study's fields, its scale's, its pair's, `--smoke`'s, the flags and `--set` over one another; checks it.

    Args:
        flags: by field; None where a flag was not given.
        sets: `FIELD=VALUE` each, the value in YAML; recipe fields and `search.PARAM` included.

    Raises:
        InputError: every problem at once, one line each.
    """
    flags = {key: value for key, value in flags.items() if value is not None}
    problems: list[str] = []
    given = parse_sets(sets, problems)
    scale = flags.get("scale") or given.get("scale") or _scale_of_data(flags.get("data") or given.get("data"))
    if scale not in study.scales:
        raise InputError(problems + [f"scale: '{scale}' is not among this space's: {', '.join(study.scales)}"])
    pair, pair_fields = _pair(study, scale, given, problems)
    merged = {
        "scale": scale,
        "recipes": scale,
        "first_guesses": study.first_guesses,
        "baselines": study.baselines,
        "recipe": {},
        "teacher_recipe": {},
        "search": {},
    }
    layers = [study.fields, study.scales[scale].fields, pair_fields]
    if flags.get("smoke") or given.get("smoke"):
        layers.append({**SMOKE, "recipe": SMOKE_RECIPE, "teacher_recipe": {**SMOKE_RECIPE, "epochs": 2}})
    for layer in [*layers, flags, given]:
        for key, value in layer.items():
            if key in FLAT_RECIPE:
                merged["recipe"] = {**merged["recipe"], key: value}
            elif isinstance(value, Part) or (key in PARTED and isinstance(value, dict)):
                merged[key] = {**merged.get(key, {}), **value}
            elif key in PARTED:
                problems.append(f"{key}: {value!r} is no mapping; give its parts by --set {key}.NAME=VALUE")
            else:
                merged[key] = value
    merged["pair"] = pair
    merged["pinned"] = sorted(set(given) & SEARCHABLE)
    settings = _checked(Settings, merged, problems)
    _check_recipe(merged["recipe"], "recipe", problems)
    _check_recipe(merged["teacher_recipe"], "teacher_recipe", problems)
    if settings:
        _check_together(settings, problems)
    if problems:
        raise InputError(problems)
    return settings


def trial_config(settings: Settings, recipe: dict[str, Any], params: dict[str, Any]) -> TrialConfig:
    """One trial's whole configuration: the settings, the resolved recipe, and what was searched above both.

    Raises:
        InputError: a field that does not exist or cannot be searched, or a value that is not allowed.
    """
    problems: list[str] = []
    for key in set(params) - SEARCHABLE:
        problems.append(f"space: it returns '{key}', which is no field of a trial{_near(key, SEARCHABLE)}")
    if problems:
        raise InputError(problems)
    base = settings.model_dump(include=set(TrialConfig.model_fields))
    first = parse_objectives(settings.objectives, settings.metrics)[0]
    base["objective"] = f"{'max' if first.maximize else 'min'}:{first.metric.removeprefix('val/')}"
    config = _checked(TrialConfig, {**base, **recipe, "epochs": settings.epochs, **params}, problems)
    if problems:
        raise InputError(problems)
    return config.on("cuda" if settings.gpus_per_trial else "cpu")


def compose(settings: Settings, recipe: dict[str, Any], available: list[int], fields: dict[str, Any]) -> TrialConfig:
    """A trial's configuration from what the space returned: searched stages cut to the student's, pinned fields above.

    Raises:
        InputError: as `trial_config`, and a batch that does not divide over the workers.
    """
    config = trial_config(settings, recipe, {**cut_stages(fields, available), **pinned_fields(settings, recipe)})
    check_batch(config, settings)
    return config


def check_batch(config: TrialConfig, settings: Settings) -> None:
    """Whether the stream can share out the batch.

    Raises:
        InputError: it does not divide over the workers.
    """
    if config.batch_size % (2 * settings.workers_per_trial):
        raise InputError(
            f"batch_size: {config.batch_size} does not divide into equal, even parts over "
            f"{settings.workers_per_trial} workers a trial; give multiples of {2 * settings.workers_per_trial} "
            "(searched: --set 'search.batch_size=16|32|64')"
        )


def pinned_fields(settings: Settings, recipe: dict[str, Any]) -> dict[str, Any]:
    """The searchable fields that --set gave."""
    return {name: recipe.get(name, getattr(settings, name, None)) for name in settings.pinned}


def cut_stages(fields: dict[str, Any], available: list[int]) -> dict[str, Any]:
    """A searched set of stages without those the student lacks, their `eps` left out with them."""
    stages = fields.get("stages")
    if not isinstance(stages, list) or set(stages) <= set(available):
        return fields
    kept = [stage in available for stage in stages]
    cut = {**fields, "stages": [stage for stage in stages if stage in available]}
    eps = fields.get("eps")
    if isinstance(eps, list) and len(eps) == len(stages) + 1:
        cut["eps"] = [value for value, keep in zip(eps, [*kept, True], strict=True) if keep]
    return cut


def describe(error: ValidationError, known: set[str]) -> list[str]:
    """Pydantic's errors as one line each: the field, the value and what is allowed."""
    lines = []
    for item in error.errors():
        if item["type"] == "default_factory_not_called":  # it wants fields that are told of themselves
            continue
        field = ".".join(str(part) for part in item["loc"] if not str(part).startswith(("list[", "dict["))) or ""
        if item["type"] == "extra_forbidden":
            lines.append(f"{field}: there is no such field{_near(field, known)}")
        elif item["type"] == "missing":
            lines.append(f"{field}: it is missing; give it in the space or by --set {field}=VALUE")
        elif field.split(".")[0] == "objectives" and item["input"] in (None, []):
            lines.append("objectives: none is given; name a metric, or several: --set objectives=top1,parameters")
        elif item["type"] == "string_pattern_mismatch" and item["ctx"]["pattern"] == NAME:
            lines.append(
                f"{field}: {item['input']!r} must be of letters, digits, '.', '_' and '-', the first one a letter or "
                "digit"
            )
        else:
            message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            allowed = message if item["type"] == "value_error" else f"must be {message}"
            value = "no value is given, it" if item["input"] is None else repr(item["input"])
            lines.append(f"{field}: {value} {allowed}" if field else message)
    return list(dict.fromkeys(lines))


def _checked(model, fields: dict[str, Any], problems: list[str]):
    try:
        return model(**fields)
    except ValidationError as error:
        problems += describe(error, set(model.model_fields) | FLAT_RECIPE)
        return None


def _pair(study: Study, scale: str, given: dict[str, Any], problems: list[str]) -> tuple[str | None, dict[str, Any]]:
    """The chosen pair's name and fields; adds to the problems what is wrong with the choice."""
    pairs = study.scales[scale].pairs
    asked, first = {**study.fields, **study.scales[scale].fields, **given}.get("pair"), next(iter(pairs), None)
    name = first if asked is None else str(asked)
    if name is not None and name not in pairs:
        elsewhere = [f"--scale {other}" for other, its in study.scales.items() if name in its.pairs]
        hint = f"; it belongs to {' and '.join(elsewhere)}" if elsewhere else _near(name, set(pairs))
        known = ", ".join(pairs) or "only one, without a name: leave it out"
        problems.append(f"pair: there is no '{name}'; scale {scale} has {known}{hint}")
        name = first
    return name, pairs.get(name, {})


def _check_recipe(recipe: dict[str, Any], name: str, problems: list[str]) -> None:
    try:
        Recipe(**{"epochs": 1, **recipe})
    except ValidationError as error:
        problems += [f"{name}.{line}" for line in describe(error, set(Recipe.model_fields))]


def check_urls(settings: Settings) -> list[str]:
    """What is wrong with the URLs of object stores among the settings: secrets, which would be kept with them."""
    problems = []
    for field in ("storage", "teacher_store_at"):
        place = getattr(settings, field, None) or ""
        try:
            if is_url(place):  # a folder's name may have an @
                check_storage(place, field)
        except InputError as error:
            problems += error.problems
    return problems


def _check_together(settings: Settings, problems: list[str]) -> None:
    problems += check_urls(settings)
    for name in sorted(set(settings.pinned) & set(settings.search)):
        problems.append(f"search.{name}: {name} is set to one value as well; give one of the two")
    if settings.train_with_holdout:
        problems.append("train_with_holdout: a study ranks its trials on the holdout; search/train.py trains on it too")
    if has_webhook(settings.notify or ""):  # typed, it has left the settings before
        problems.append("notify: a webhook's URL would be kept with the settings; write env:NAME, and export NAME")
    if settings.name in RESERVED:
        problems.append(f"name: '{settings.name}' is taken by the storage itself; give another --name")
    try:
        objectives = parse_objectives(settings.objectives, settings.metrics)
        if settings.sampler == "cmaes" and len(objectives) > 1:
            problems.append(
                "sampler: 'cmaes' searches for one objective; take tpe, gp, nsga2 or nsga3, or give one objective"
            )
        problems += budget_problems(settings, objectives[0])
    except InputError as error:
        problems += error.problems
    if settings.stopping_schedule == "rung" and settings.scheduler in ("median", "none"):
        problems.append(
            f"stopping_schedule: 'rung' starts the learning rate anew at the scheduler's rungs, and "
            f"'{settings.scheduler}' has none; take scheduler=asha or hyperband, or stopping_schedule=full"
        )
    if settings.stopping_schedule == "rung" and "sched_restarts" in settings.recipe:
        problems.append("stopping_schedule: 'rung' sets sched_restarts by itself; leave one of the two out")
    names = [baseline if isinstance(baseline, str) else baseline.get("name") for baseline in settings.baselines]
    for baseline, name in zip(settings.baselines, names, strict=True):
        if isinstance(baseline, str) and baseline not in BASELINES:
            problems.append(f"baselines: '{baseline}' is none of {', '.join(BASELINES)}; or give its fields as a dict")
        elif not isinstance(name, str) or not re.match(NAME, name) or name.isdigit():
            problems.append(f"baselines: {baseline!r} needs a 'name' of letters, digits, '-', '_' and no mere number")
        elif names.count(name) > 1:
            problems.append(f"baselines: there are several named '{name}'; give each a name of its own")
        elif re.search(OWN, name):
            problems.append(
                f"baselines: '{name}' may be the name of another baseline's run (NAME-1 of its search, NAME-seed1 in "
                f"the final, NAME-as-1 for another student); name it otherwise, e.g. '{name.replace('-', '_')}'"
            )
    if settings.gpus_per_trial and settings.gpus_per_trial > 1 and settings.gpus_per_trial % settings.workers_per_trial:
        problems.append(
            f"gpus_per_trial: {settings.gpus_per_trial} cannot be shared evenly by {settings.workers_per_trial} "
            "workers; give a multiple of --workers-per-trial"
        )
    if settings.pack > 1 and settings.workers_per_trial > 1:
        problems.append(
            f"pack: packed trials share one process, but workers_per_trial is {settings.workers_per_trial}; give one "
            "of the two"
        )
    elif settings.pack > 1 and settings.gpus_per_lane > 1:
        problems.append(
            f"pack: {settings.pack} trials of {settings.gpus_per_trial:g} GPUs each do not fit on one; give "
            f"--gpus-per-trial {math.floor(1000 / settings.pack) / 1000:g}"
        )
    if settings.data == "digits" and settings.data_dir:
        problems.append("data_dir: digits come with scikit-learn and need none; leave --data-dir out or give --data")


# The student without a teacher, and Hinton's distillation with the paper's settings (temperature 1, equal weights).
PLAIN = {"logit_standardization": False, "curriculum_temperature": False}
BASELINES = {
    "scratch": {"distiller": "none", "stages": [], "eps": 1.0, "gt_loss_weight": 1.0, **PLAIN},
    "kd": {
        "distiller": "kd",
        "stages": [],
        "eps": 1.0,
        "temperature": 1.0,
        "gt_loss_weight": 1.0,
        "kd_loss_weight": 1.0,
        "ofa_loss_weight": 0.0,
        **PLAIN,
    },
}


def baseline_params(baseline: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A baseline's name and its fields above the study's."""
    if isinstance(baseline, str):
        return baseline, BASELINES[baseline]
    return baseline["name"], {key: value for key, value in baseline.items() if key != "name"}


def _scale_of_data(data: str | None) -> str:
    name = Path(data or "").name.lower()
    return "imagenet" if "imagenet" in name else "cifar100" if "cifar" in name else SCALES[0]


def _near(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name.split(".")[-1], known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
