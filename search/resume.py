"""Going on with a study: what it was started with, what must stay, and that nobody else is at it."""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

from search.objective import parse_objectives
from search.rungs import restarts
from search.settings import Settings
from search.storage import LOCK, STARTED, Storage
from search.tracking.credentials import set_aside, shown, without_secrets
from search.values import parse_sets
from trainables.config import DataFields, StudentFields, TeacherFields
from trainables.errors import InputError
from trainables.store_mode import parse_store

# What makes trials comparable. The rest (trials, budgets, ranges, sampler, lanes, tracking) may change on the way.
STAYS = sorted(
    (set(DataFields.model_fields) | set(TeacherFields.model_fields) | set(StudentFields.model_fields))
    - {"data_dir", "loader_workers", "train_with_holdout"}
    | {"pair", "epochs", "full_epochs", "recipe", "teacher_recipe", "recipes", "family", "seed", "baselines"}
    | {"objectives", "stopping_schedule", "metrics", "warm_start", "simulate"}
)
INDIFFERENT = ("seed", "baselines", "pair", "metrics", "warm_start")  # those that change no trial's result in the mean
FROM = {
    "sched_restarts": "grace_epochs, reduction_factor, scheduler, brackets: the learning rate's restarts "
    "(stopping_schedule=rung)"
}


def what_stays(settings: Settings, data_fingerprint: str) -> dict[str, Any]:
    """All that must stay in a study, by name, as JSON keeps it."""
    stays = {name: value for name, value in settings.model_dump(mode="json").items() if name in STAYS}
    moving = {"sched_restarts": restarts(settings)} if settings.stopping_schedule == "rung" else {}
    mode = parse_store(settings.teacher_store)  # off is no other result than full; the rest is other answers or batches
    moving["teacher_store"] = settings.teacher_store if mode.topk or mode.views else "full"
    return {**stays, "data_fingerprint": data_fingerprint, **moving}


def comparable(stays: dict[str, Any]) -> str:
    """A short hash that two studies share where a trial's result means the same in both.

    Another seed is another draw of the same; baselines and a pair's name change no trial.
    """
    deciding = {name: value for name, value in stays.items() if name not in INDIFFERENT}
    objectives = parse_objectives(stays["objectives"], stays.get("metrics", ())) if "objectives" in stays else []
    deciding["objectives"] = [[one.metric, one.maximize] for one in objectives]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def remember(
    folder: Path,
    settings: Settings,
    data_fingerprint: str,
    flags: dict[str, Any],
    sets: list[str],
    searched: dict[str, int] | None = None,
) -> None:
    """Writes what the study was started with; a resumed one keeps what must stay and remembers the newer flags.

    Args:
        searched: how many trials each study had with which this one begins; empty keeps what was written before.
    """
    content = {
        "space": settings.space,
        "flags": flags,
        "set": sets,
        "stays": what_stays(settings, data_fingerprint),
        "searched": searched or began_with(_read(folder) or {}),
    }
    partial = folder / f"{STARTED}.partial"
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, folder / STARTED)


def began_with(started: dict[str, Any]) -> dict[str, int | None]:
    """By name the studies that a study started warm from, and how many trials they had; None where that was not kept.

    Args:
        started: what `remember` wrote.
    """
    return started.get("searched", dict.fromkeys(started.get("stays", {}).get("warm_start", [])))


def as_before(flags: dict[str, Any], sets: list[str], asked: str = "--resume") -> tuple[dict[str, Any], list[str]]:
    """A resumed study's flags: those it was started with, and above them those given now.

    Args:
        asked: the flag that named the study, for the error message.

    Raises:
        InputError: there is no such study, or as `without_secrets`.
    """
    if "name" not in flags:
        raise InputError("--resume: give the study's --name")
    storage = Storage(flags.get("storage", "runs"))
    before = _read(storage.bring(flags["name"], asked))
    if before is None:
        raise InputError(f"{asked}: there is no study '{flags['name']}' in {storage}{known_studies(storage.root)}")
    given = {*flags, *(item.split("=")[0] for item in sets)}
    kept = [item for item in before["set"] if item.split("=")[0] not in given]
    flags = {**{key: value for key, value in before["flags"].items() if key not in given}, **flags}
    return without_secrets(flags, kept + sets)


def typed(space: str, flags: dict[str, Any], sets: list[str], resume: bool = False) -> str:
    """The command with these flags as one types it, the password of a tracking server left out."""
    words = ["python", "search/run.py", "--space", space]
    for name, value in flags.items():
        if name == "space" or value is False or value is None:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words += [shown(str(part)) for part in (value if isinstance(value, list) else [value])]
    if resume:
        words.append("--resume")
    given = [item.partition("=") for item in sets]
    shown_sets = [f"{name}{equals}{shown(value)}" for name, equals, value in given]
    return shlex.join([*words, *(["--set", *shown_sets] if sets else [])])


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


def store_of(folder: Path, given: str | None = None) -> str:
    """MLflow's store of the study in a folder, without secrets: the given one, its own, or SQLite in the storage.

    Raises:
        InputError: see `set_aside`.
    """
    started = _read(folder) or {}
    fields = {**started.get("flags", {}), **parse_sets(started.get("set", []), [])}
    uri = given or fields.get("tracking_uri")
    return set_aside(uri) if uri else f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"


def stays_of(folder: Path) -> dict[str, Any]:
    """What must stay in the study of a folder, as it was started; empty where it is not known."""
    return (_read(folder) or {}).get("stays", {})


def check_same(folder: Path, settings: Settings, data_fingerprint: str) -> None:
    """Refuses to mix what cannot be compared in one study.

    Raises:
        InputError: a field that must stay has changed, one line each.
    """
    before, now = stays_of(folder), what_stays(settings, data_fingerprint)
    problems = [
        f"{FROM.get(name, name)}: the study was started with {before[name]!r}, not {value!r}; leave it, or start a new "
        "study"
        for name, value in now.items()
        if name in before and before[name] != value
    ]
    if problems:
        raise InputError(problems)


@contextlib.contextmanager
def sole_session(folder: Path, storage: Storage | None = None):
    """Holds the study's lock: two sessions of one study would train the same trials.

    Args:
        folder: the study's, or its working copy.
        storage: where it lies; None for a folder.

    Yields:
        What gives an object store all that is written (`search.mirroring`).

    Raises:
        InputError: another session is at it, or the store cannot be used.
    """
    from search.lease import mirrored
    from search.mirroring import Plain

    with open(folder / LOCK, "a+") as file:
        try:
            _lock(file)
        except OSError as error:
            file.seek(0)
            raise InputError(
                f"--name: study '{folder.name}' is being run ({file.read().strip()}); stop that one first"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        with mirrored(storage, folder) if storage else contextlib.nullcontext(Plain()) as mirroring:
            yield mirroring


def _lock(file) -> None:
    """Raises: OSError: another session has it; not one that only looks, which takes no time (`local_studies`)."""
    for left in (2, 1, 0):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if not left:
                raise
            time.sleep(0.05)


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
