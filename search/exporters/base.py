"""What an exporter is: it turns a trial's configuration into another trainer's files, and accounts for every field."""

import json
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from trainables.config import Recipe, TrialConfig, fields_read
from trainables.distillers import distillers_of
from trainables.distillers.base import STAGE_LOGITS
from trainables.errors import InputError

# Fields of a recipe that ask for nothing where they have this value, so that a target need not know them
NEUTRAL: dict[str, Any] = {
    "clip_grad": None, "smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "hflip": 0.0, "color_jitter": None, "aa": None,
    "reprob": 0.0, "bce_loss": False, "drop": None, "drop_path": None, "model_ema": False, "sched_restarts": [],
    "warmup_epochs": 0, "normalize_loss_weights": False, "logit_standardization": False, "temperature_squared": False,
    "curriculum_temperature": False, "projector_lr_scale": 1.0, "projector_weight_decay_scale": 1.0,
}  # fmt: skip
# Fields that are read only where another one has such a value
WHERE: dict[str, Callable[[TrialConfig], bool]] = {
    "mixup_prob": lambda config: bool(config.mixup or config.cutmix),
    "mixup_switch_prob": lambda config: bool(config.mixup and config.cutmix),
    "model_ema_decay": lambda config: config.model_ema,
    "decay_epochs": lambda config: config.sched == "step",
    "decay_rate": lambda config: config.sched in ("step", "poly"),
    "min_lr": lambda config: config.sched != "step",
    "warmup_lr": lambda config: config.warmup_epochs > 0,
    "momentum": lambda config: any(name in config.opt for name in ("sgd", "nesterov", "momentum", "rmsprop", "lars")),
    "amp_dtype": lambda config: bool(config.amp),
    "projector_lr_scale": lambda config: _has_projectors(config),
    "projector_weight_decay_scale": lambda config: _has_projectors(config),
    "projector": lambda config: _has_projectors(config),
    "ofa_loss_weight": lambda config: bool(config.stages),
}
SPEED = {"amp", "amp_dtype", "channels_last", "torchcompile", "opt_fused", "cuda_graph"}  # how fast, not what
IMAGES = ("data", "holdout", "labels_per_class", "max_images", "data_seed", "train_with_holdout")
WHOLE = {  # what is carried or not as one
    "images": IMAGES,
    "teacher": ("teacher", "teacher_kwargs", "teacher_source", "teacher_weights", "teacher_fit_from"),
    "student": ("student", "student_kwargs", "student_source", "student_weights"),
}


@dataclass(frozen=True)
class Source:
    """What is exported: one trial of a study.

    Attributes:
        record: the canonical record, as `best.yaml` has it.
        config: the trial's whole configuration.
        classes: the data's class names, in the order of the logits.
        weights: its trained student.
        teacher: the teacher's weights.
        train_images: how many images it was trained on.
        distributions: Optuna's of the search, by the space's names.
        trials: how many the search had.
        with_data: whether the trial's images are written too, as `data`.
    """

    record: dict[str, Any]
    config: TrialConfig
    classes: list[str]
    weights: Path
    teacher: Path
    train_images: int
    distributions: dict[str, Any] = field(default_factory=dict)
    trials: int = 0
    with_data: bool = False

    @property
    def name(self) -> str:
        """Which trial of which study."""
        return f"Trial {self.record['trial']} of study {self.record['study']}"


@dataclass
class Export:
    """What an exporter gives.

    Attributes:
        files: texts by name.
        command: what starts the target on them, from the folder that holds them.
        needs: what must be installed for that.
        exact: by field, where it stands in the target.
        approximated: by field, what is asked for instead, with the formula.
        dropped: by field, why the target cannot have it.
        copies: further files by name, copied as they are.
        pickles: by name what gives weights that are written as PyTorch's own files, for targets that read no
            safetensors.
        notes: whatever else to know, a sentence each.
    """

    files: dict[str, str]
    command: list[str]
    needs: str
    exact: dict[str, str] = field(default_factory=dict)
    approximated: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    copies: dict[str, Path] = field(default_factory=dict)
    pickles: dict[str, Callable[[], dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Exporter(ABC):
    """A target: subclass it, give it a name and a title, and `register` it.

    Attributes:
        name: of the target, for `--to`.
        title: what it is, on one line.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    def refuses(self, source: Source) -> list[str]:
        """Why the target cannot run this configuration at all, each reason in one line; without one it can."""
        return []

    @abstractmethod
    def export(self, source: Source) -> Export:
        """The target's files; writes nothing. The three lists together name every field of `decisive`."""


EXPORTERS: dict[str, Exporter] = {}


def register(cls: type[Exporter]) -> type[Exporter]:
    """Class decorator: makes a target known under its name."""
    if cls.name in EXPORTERS:
        raise ValueError(f"there is a target '{cls.name}' already")
    EXPORTERS[cls.name] = cls()
    return cls


def decisive(config: TrialConfig) -> set[str]:
    """The fields that decide what this trial's student becomes, some as one (`images`, `teacher`, `student`).

    Those that no part of it reads, and those that ask for nothing, are left out.
    """
    read = fields_read(config.distiller, config.curriculum_temperature)
    names = (read | set(Recipe.model_fields) | {"img_size", "seed"}) - SPEED
    if "stages" in read and config.stages:
        names.add("taps")
    if not _taught(config):
        names.discard("temperature")
    return set(WHOLE) - (set() if _taught(config) else {"teacher"}) | {
        name
        for name in names
        if not (name in NEUTRAL and getattr(config, name) == NEUTRAL[name])
        and (name not in WHERE or WHERE[name](config))
    }


def account_images(export: Export, source: Source) -> None:
    """Accounts for the images of a target that reads `data`, a folder of class folders."""
    if source.with_data:
        export.exact["images"] = "`data`, which was written"
    else:
        export.dropped["images"] = "give your own folder `data`, with `train` and `validation`, or export `--with-data`"


def loss_weights(config: TrialConfig) -> dict[str, float]:
    """The weights of cross-entropy and of `ofa`'s or `kd`'s terms, divided by their sum where the trial has it so."""
    weights = {"gt_loss_weight": config.gt_loss_weight}
    if _taught(config):
        weights["kd_loss_weight"] = config.kd_loss_weight
    if _has_projectors(config):
        weights["ofa_loss_weight"] = config.ofa_loss_weight
    scale = sum(weights.values()) if config.normalize_loss_weights else 1.0
    return {name: weight / scale for name, weight in weights.items()}


def eps_by_output(config: TrialConfig) -> list[float]:
    """OFA's eps of each stage, in the order of `stages`, and of the logits."""
    eps = config.eps if isinstance(config.eps, list) else [config.eps]
    return eps if len(eps) > 1 else eps * (len(config.stages) + 1)


def lacking(config: TrialConfig, distillers: Iterable[str], fields: Iterable[str], what: str) -> list[str]:
    """Why a target of ours that has some distillers, and lacks some fields, cannot run a configuration."""
    problems = []
    if config.distiller not in distillers:
        problems.append(
            f"distiller: {what} has {', '.join(distillers)}, not {config.distiller}; lightning and hf have all"
        )
    return problems + [
        f"{name}: {what} has no such thing; lightning and hf have" for name in fields if getattr(config, name)
    ]


def check_accounts(export: Export, config: TrialConfig) -> None:
    """That an export accounts for every field once.

    Raises:
        RuntimeError: an exporter forgot a field, or named one twice.
    """
    lists = (export.exact, export.approximated, export.dropped)
    named = [name for one in lists for name in one]
    twice = {name for name in named if named.count(name) > 1}
    forgotten = decisive(config) - set(named)
    if twice or forgotten:
        raise RuntimeError(f"the exporter names twice: {sorted(twice)}; it does not name: {sorted(forgotten)}")


def check_keys(keys: Iterable[str], known: set[str]) -> None:
    """That a target knows its keys, where it would take others in silence.

    Raises:
        RuntimeError: it does not.
    """
    if unknown := set(keys) - known:
        raise RuntimeError(f"the target has no keys {sorted(unknown)}")


def start_weights(source: Source, export: Export) -> str | None:
    """The name under which the checkpoint that the student begins with is copied; None where it begins otherwise.

    Raises:
        InputError: it is no longer there.
    """
    if source.config.student_source != "checkpoint":
        return None
    path = Path(source.config.student_weights)
    if not path.exists():
        raise InputError(f"student_weights: {path}, with which the trial began, is no longer there")
    export.copies[f"start{path.suffix}"] = path
    return f"start{path.suffix}"


def write_export(exporter: Exporter, source: Source, out: Path) -> list[str]:
    """Writes a target's files and EXPORT.md into a folder, which is made; the names of what was written."""
    import shutil

    export = exporter.export(source)
    check_accounts(export, source.config)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in export.files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    for name, path in export.copies.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / name)
    for name, weights in export.pickles.items():
        import torch

        torch.save(weights(), out / name)
    (out / "EXPORT.md").write_text(account(exporter, source, export))
    return [*export.files, *export.copies, *export.pickles, "EXPORT.md"]


def account(exporter: Exporter, source: Source, export: Export) -> str:
    """EXPORT.md: what was carried over exactly, what approximately, what not, and the command."""
    record, config = source.record, source.config
    lines = [
        f"# {source.name}, for {exporter.title}",
        "",
        (
            f"`{config.teacher}` teaches `{config.student}`"
            if _taught(config)
            else f"`{config.student}` without a teacher"
        )
        + f"; val/top1 {record['val_top1']:.2f} in the search, after {record['config']['epochs']} epochs.",
        "",
        *_commands(export),
        *(f"{note}\n" for note in export.notes),
    ]
    for title, fields in (
        ("Carried over exactly", export.exact),
        ("Approximated", export.approximated),
        ("Dropped", export.dropped),
    ):
        lines += [f"## {title}", ""]
        if fields:
            lines += ["| field | value | |", "| --- | --- | --- |"]
            rows = [(name, _value(config, name), text.replace("|", "\\|")) for name, text in sorted(fields.items())]
            lines += [f"| `{name}` | {value} | {text} |" for name, value, text in rows]
        else:
            lines.append("Nothing.")
        lines.append("")
    return "\n".join(lines)


def _commands(export: Export) -> list[str]:
    lines = [line for line in (export.needs, shlex.join(export.command)) if line]
    return ["## Run it", "", "```bash", *lines, "```", ""] if lines else []


def to_yaml(content: dict[str, Any], head: str = "") -> str:
    """YAML in the given order, every float with a dot: without one, readers of YAML 1.1 take 5e-4 for a text.

    Args:
        head: a comment's text, put first.
    """
    comment = "".join(f"# {line}\n" for line in head.splitlines())
    return comment + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def to_json(content: dict[str, Any]) -> str:
    """JSON, indented."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Tagged:
    """A mapping that YAML shows under a tag, such as torchdistill's `!import_call`."""

    tag: str
    content: dict[str, Any]


class _Dumper(yaml.SafeDumper):
    """Aliases would be read by no flat reader; PyYAML's own floats always have a dot."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(Tagged, lambda dumper, one: dumper.represent_mapping(one.tag, one.content))


def _value(config: TrialConfig, name: str) -> str:
    fields = WHOLE.get(name, (name,))
    value = getattr(config, fields[0])
    return f"`{value}`" if value not in (None, [], {}) else "none"


def _taught(config: TrialConfig) -> bool:
    return config.distiller != "none"


def _has_projectors(config: TrialConfig) -> bool:
    return bool(config.stages) and any(STAGE_LOGITS in one.needs for one in distillers_of(config.distiller))
