"""What a study's folder tells beside its records: settings, how it was started, the teacher, the account."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from search.ledger import Ledger
from search.resume import STARTED, began_with, known_studies, typed
from search.settings import Settings, describe
from search.storage import JOURNAL
from trainables.errors import InputError

if TYPE_CHECKING:
    import optuna

SETTINGS = "settings.yaml"
TEACHER, TEST_FILE = "teacher.json", "test.npz"


@dataclass(frozen=True)
class Facts:
    """What a report needs to know of a study besides its records.

    Attributes:
        folder: the study's.
        settings: those of its latest session.
        written: `settings.yaml` as it stands, resolved recipes included.
        started: as `search.resume.remember` wrote it: its sessions' flags together; {} where that is not known.
        teacher: as `trainables.teacher_job.prepare_teacher` returns it; {} where it is not known.
        account: `account.json`; {} in studies without one.
        holdout_images, test_images: the splits' sizes; None where they are not known.
    """

    folder: Path
    settings: Settings
    written: str
    started: dict[str, Any]
    teacher: dict[str, Any]
    account: dict[str, Any]
    holdout_images: int | None
    test_images: int | None

    @property
    def searched(self) -> dict[str, int | None]:
        """The studies that it started warm from, as `search.resume.began_with`."""
        return began_with(self.started)

    @property
    def command(self) -> str:
        """The command with the flags of all sessions together, later ones above earlier ones."""
        flags = {"name": self.settings.name, **self.started.get("flags", {})}
        return typed(str(self.started.get("space", self.settings.space)), flags, self.started.get("set", []))


def read_study(storage: Path, name: str) -> tuple[Facts, Ledger, "optuna.Study | None"]:
    """A study by its name: its facts, its records, and Optuna's study where its journal is there.

    Raises:
        InputError: there is no such study, it has no trials yet, or a file of it is broken.
    """
    folder = Path(storage) / name
    if not (folder / "trials").is_dir():
        raise InputError(f"--study: there is no study '{name}' in {storage}{known_studies(Path(storage))}")
    try:
        ledger = Ledger(folder / "trials")
    except (ValueError, TypeError) as error:
        raise InputError(f"--study: a record.json of '{name}' is broken ({error}); move its folder away") from error
    if not ledger.records:
        raise InputError(f"--study: '{name}' has no trials yet; run it first")
    from search.optuna_study import load_study

    journal = folder / JOURNAL
    return read_facts(folder, ledger), ledger, load_study(journal) if journal.exists() else None


def read_facts(folder: Path, ledger: Ledger) -> Facts:
    """The facts of a study's folder.

    Raises:
        InputError: a file is broken, or there are no settings.
    """
    written, settings = _settings(folder)
    best = _read(folder / "best.yaml")
    teacher = _teacher(folder.parent, best.get("teacher_sha256"))
    counts = teacher.get("class_counts", {})
    return Facts(
        folder,
        settings,
        written,
        _read(folder / STARTED),
        teacher,
        _read(folder / "account.json"),
        best.get("holdout_images") or teacher.get("images"),
        sum(counts.get("test", [])) or _tested(ledger),
    )


def _settings(folder: Path) -> tuple[str, Settings]:
    path = folder / SETTINGS
    if not path.exists():
        raise InputError(f"--study: {path} is missing; the study ended before it began, start it again")
    written = path.read_text()
    content = _read(path)
    try:  # other versions of the settings had fewer fields, or more
        return written, Settings(**{name: content[name] for name in Settings.model_fields if name in content})
    except ValidationError as error:
        raise InputError(
            [f"--study: {path}: {line}" for line in describe(error, set(Settings.model_fields))]
        ) from error


def _teacher(storage: Path, sha256: str | None) -> dict[str, Any]:
    """The teacher's figures from the storage, by the hash of its weights."""
    known = (_read(path) for path in sorted(storage.glob(f"teachers/*/{TEACHER}")))
    return next((about for about in known if sha256 and about.get("sha256") == sha256), {})


def _tested(ledger: Ledger) -> int | None:
    """The number of test images that a finalist was judged on."""
    import numpy as np

    for record in ledger.of_role("finalist"):
        path = ledger.trial_folder(record.trial_id) / TEST_FILE
        if path.exists():
            with np.load(path) as kept:
                return len(kept["target"])
    return None


def _read(path: Path) -> dict[str, Any]:
    """A YAML or JSON file, {} where there is none."""
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else json.loads(path.read_text())
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"--study: {path} is broken ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise InputError(f"--study: {path} is broken (it holds no fields)")
    return content
