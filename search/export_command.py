"""The command behind `search/export.py`: from a study's folder to another trainer's files."""

import dataclasses
import importlib
import json
import pkgutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import search.exporters
from search.exporters.base import EXPORTERS, Exporter, Source, write_export
from search.ledger import COMPLETE, Ledger, TrialRecord
from search.objective import TOP1
from search.paths import import_from_current_folder, writable
from search.storage import JOURNAL, TEACHERS, Storage
from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.files import STUDENT

TRAINED = ("weights", "json")  # targets that are of a student as it is
BEST = "best.yaml"


def load_exporters() -> None:
    """Imports every module of `search.exporters`, so that its targets are known."""
    for module in pkgutil.iter_modules(search.exporters.__path__, "search.exporters."):
        importlib.import_module(module.name)


def run_export(arguments) -> int:
    """Exports; returns the exit code.

    Raises:
        InputError: the study, the trial or the target is unknown, the folder is not empty, or the target cannot have
            such a configuration.
    """
    load_exporters()
    if arguments.list:
        for name, exporter in sorted(EXPORTERS.items()):
            print(f"{name:<12} {exporter.title}")
        return 0
    import_from_current_folder()
    storage, out = Storage(arguments.storage), arguments.out
    folder = storage.bring(arguments.study) if arguments.study else storage.root
    problems = [f"--{name}: give it" for name in ("study", "to", "out") if getattr(arguments, name) in (None, "")]
    if arguments.to is not None and arguments.to not in EXPORTERS:
        problems.append(f"--to: '{arguments.to}' is no target; there are {', '.join(sorted(EXPORTERS))}")
    if arguments.study and not folder.is_dir():
        problems.append(f"--study: there is no study '{arguments.study}' in {storage}")
    elif arguments.study and not (folder / BEST).exists():
        problems.append(f"--study: '{arguments.study}' has no finished best trial yet")
    for name in ("onnx", "torch_export"):
        if getattr(arguments, name) and arguments.to != "weights":
            problems.append(f"--{name.replace('_', '-')}: it is the weights' other form; give --to weights")
    if out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"--out: {out} is not empty; give a new folder")
    elif out and not writable(out.parent):
        problems.append(f"--out: {out.parent} cannot be written; give a folder that can")
    if arguments.full_length and arguments.to in TRAINED:
        problems.append(
            f"--full-length: {arguments.to} is of a student that is trained; search/train.py trains in full"
        )
    if problems:
        raise InputError(problems)
    source = read_source(folder, arguments.trial, storage)
    if arguments.full_length:
        source = at_full_length(source)
    source = dataclasses.replace(source, with_data=arguments.with_data)
    exporter = EXPORTERS[arguments.to]
    if reasons := exporter.refuses(source):
        raise InputError([f"--to {exporter.name}: {reason}" for reason in reasons])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as partial:  # whole or not at all
        whole = Path(partial) / out.name
        lines = list(_write(exporter, source, whole, arguments))
        if out.exists():
            out.rmdir()
        whole.rename(out)
    for name, told in lines:
        print(f"{out / name}{told}")
    return 0


def _write(exporter: Exporter, source: Source, out: Path, arguments) -> Iterator[tuple[str, str]]:
    """Writes all of an export; each thing's name, and what there is to say of it."""
    for name in write_export(exporter, source, out):
        yield name, ""
    if arguments.with_data:
        from search.exporters.images import write_images

        counts = write_images(source.config, out / "data")
        yield "data", ": " + ", ".join(f"{count} images in {part}" for part, count in counts.items())
    from search.exporters.graphs import write_onnx, write_torch_export

    forms = {"torch_export": ("student.pt2", write_torch_export), "onnx": ("student.onnx", write_onnx)}
    for name, (file, write) in forms.items():
        if getattr(arguments, name):
            yield file, f": its logits are PyTorch's within {write(source, out / file):.0e} of the largest"


def read_source(folder: Path, trial: str | None, storage: Storage) -> Source:
    """What is exported of a study.

    Args:
        folder: the study's, with a `best.yaml`.
        trial: a trial's number or a baseline's name; None for the best.
        storage: where it lies.

    Raises:
        InputError: there is no such trial, it did not complete, or its weights or its teacher are gone.
    """
    best: dict[str, Any] = yaml.safe_load((folder / BEST).read_text())
    if "simulated" in best:
        raise InputError(f"--study: '{folder.name}' has no weights; a simulated study trains none")
    ledger = Ledger(folder / "trials")
    record = ledger.records.get(trial or str(best["trial"]))
    if record is None or record.role not in ("trial", "baseline"):
        there = ", ".join(one.trial_id for one in ledger.records.values() if one.role in ("trial", "baseline"))
        raise InputError(f"--trial: '{folder.name}' has no trial '{trial}'; there are {there or 'none'}")
    if record.state != COMPLETE:
        raise InputError(f"--trial: trial {record.trial_id} is {record.state} ({record.reason}); name a complete one")
    weights = storage.fetch(ledger.trial_folder(record.trial_id) / STUDENT)
    teacher = _teacher(folder, best["teacher_sha256"])
    if teacher is not None:
        storage.fetch(teacher)
    if not weights.exists():
        raise InputError(
            f"--trial: the weights of trial {record.trial_id} are no longer in {storage.shown(weights.parent)}"
        )
    if teacher is None or not teacher.exists():
        back = f"search/run.py --name {folder.name} --resume makes it again"
        raise InputError(f"--study: its teacher is no longer in {storage.shown(folder.parent / TEACHERS)}; {back}")
    facts = json.loads(teacher.with_suffix(".json").read_text())
    classes = facts["class_names"]
    own = record.trial_id == str(best["trial"])
    return Source(
        record=(best if own else _record_of(record, best)) | {"classes": classes},
        config=TrialConfig(**record.config),
        classes=classes,
        weights=weights,
        teacher=teacher,
        train_images=sum(facts["class_counts"]["train"]),
        distributions=_distributions(folder),
        trials=len(ledger.of_role("trial")),
    )


def at_full_length(source: Source) -> Source:
    """With the recipe's full length in place of the search's shorter one."""
    return dataclasses.replace(source, config=source.config.model_copy(update=source.record["full_length"]))


def _record_of(record: TrialRecord, best: dict[str, Any]) -> dict[str, Any]:
    """Another trial's canonical record: the study's facts, and its own figures."""
    own = {"trial": record.trial_id, "val_top1": record.metric(TOP1), "final": {}}
    return best | own | {"searched": record.params, "config": record.config}


def _distributions(folder: Path) -> dict[str, Any]:
    """What the search drew from, by parameter."""
    from search.optuna_study import load_study

    found: dict[str, Any] = {}
    for trial in load_study(folder / JOURNAL).get_trials(deepcopy=False):
        found |= trial.distributions
    return found


def _teacher(folder: Path, sha256: str) -> Path | None:
    """The weights of a study's teacher, found by their hash."""
    for about in (folder.parent / TEACHERS).glob("*/teacher.json"):
        if json.loads(about.read_text()).get("sha256") == sha256:
            return about.with_suffix(".safetensors")
    return None
