"""Going on with a study: what it was started with, what must stay, and that nobody else is at it."""

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from search.settings import Settings
from trainables.config import DataFields, StudentFields, TeacherFields
from trainables.errors import InputError

STARTED, LOCK, JOURNAL = "started.json", "lock", "optuna.log"
# What makes trials comparable. The rest (trials, budgets, ranges, sampler, lanes, tracking) may change on the way.
STAYS = sorted(
    (set(DataFields.model_fields) | set(TeacherFields.model_fields) | set(StudentFields.model_fields))
    - {"data_dir", "loader_workers"}
    | {"pair", "epochs", "full_epochs", "recipe", "teacher_recipe", "recipes", "family", "seed", "baselines"}
    | {"objectives", "stopping_schedule", "metrics", "simulate"} - {"train_with_holdout"}
)


def remember(folder: Path, settings: Settings, data_fingerprint: str, flags: dict[str, Any], sets: list[str]) -> None:
    """Writes what the study was started with; a resumed one keeps what must stay and remembers the newer flags."""
    stays = {name: value for name, value in settings.model_dump(mode="json").items() if name in STAYS}
    content = {
        "space": settings.space,
        "flags": flags,
        "set": sets,
        "stays": {**stays, "data_fingerprint": data_fingerprint},
    }
    partial = folder / f"{STARTED}.partial"
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, folder / STARTED)


def as_before(flags: dict[str, Any], sets: list[str]) -> tuple[dict[str, Any], list[str]]:
    """A resumed study's flags: those it was started with, and above them those given now.

    Raises:
        InputError: there is no such study.
    """
    if "name" not in flags:
        raise InputError("--resume: give the study's --name")
    storage = Path(flags.get("storage", "runs").removeprefix("file://"))
    before = _read(storage / flags["name"])
    if before is None:
        raise InputError(f"--resume: there is no study '{flags['name']}' in {storage}{known_studies(storage)}")
    given = {*flags, *(item.split("=")[0] for item in sets)}
    kept = [item for item in before["set"] if item.split("=")[0] not in given]
    return {**{key: value for key, value in before["flags"].items() if key not in given}, **flags}, kept + sets


def space_of(folder: Path) -> Path:
    """The space file that a study was started with, or the copy of it where that is gone.

    Raises:
        InputError: the study's folder has neither.
    """
    before = Path((_read(folder) or {}).get("space", ""))
    found = next((path for path in (before, folder / "space.py") if path.is_file()), None)
    if found is None:
        raise InputError(f"--study: the space file of '{folder.name}' is gone ({before}); put it back")
    return found


def check_same(folder: Path, settings: Settings, data_fingerprint: str) -> None:
    """Refuses to mix what cannot be compared in one study.

    Raises:
        InputError: a field that must stay has changed, one line each.
    """
    before = (_read(folder) or {}).get("stays", {})
    now = {**settings.model_dump(mode="json"), "data_fingerprint": data_fingerprint}
    problems = [
        f"{name}: the study was started with {before[name]!r}, not {now[name]!r}; leave it, or start a new study"
        for name in [*STAYS, "data_fingerprint"]
        if name in before and before[name] != now[name]
    ]
    if problems:
        raise InputError(problems)


def check_parameters(folder: Path, distributions: dict[str, Any]) -> None:
    """Refuses a parameter that Optuna could not go on with: other choices, or another kind of number.

    Args:
        folder: the study's.
        distributions: Optuna's, of each parameter that the space suggests now.

    Raises:
        InputError: one line for each such parameter.
    """
    if not (folder / JOURNAL).exists():
        return
    import optuna

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL)))
    problems = {}
    for study in storage.get_all_studies():
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            for name, before in trial.distributions.items():
                try:
                    optuna.distributions.check_distribution_compatibility(before, distributions.get(name, before))
                except ValueError:
                    was = "|".join(map(str, getattr(before, "choices", ()))) or str(before)
                    problems[name] = f"search.{name}: the study was started with {was}; keep that, or start a new study"
    if problems:
        raise InputError(list(problems.values()))


@contextlib.contextmanager
def sole_session(folder: Path):
    """Holds the study's lock: two sessions of one study would train the same trials.

    Raises:
        InputError: another session is at it.
    """
    with open(folder / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise InputError(
                f"--name: study '{folder.name}' is being run ({file.read().strip()}); stop that one first"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def known_studies(storage: Path) -> str:
    """The latest studies of a storage, as the end of an error message."""
    names = sorted(path.parent.name for path in storage.glob(f"*/{STARTED}"))
    return f"; there are {', '.join(names[-5:])}" if names else ""


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / STARTED).read_text())
    except OSError:
        return None
    except ValueError as error:
        raise InputError(f"--resume: {folder / STARTED} is broken ({error}); start a new study") from error
