"""Studies of this machine, or of a folder that it shares: what their storage tells of them, and how one is stopped."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.account import ACCOUNT
from search.cluster_jobs import DONE, FAILED, INTERRUPTED, RUNNING
from search.paths import storage_folder
from search.resume import LOCK, STARTED, space_of
from search.session_log import CONSOLE
from search.tracking.study_run import StudyRun
from trainables.errors import InputError

LOG = "run.log"  # what libraries say
STATES = {"FINISHED": DONE, "FAILED": FAILED}  # by the state of the parent run; the others were cut off
STOP_S = 900.0  # how long a study has to end once it is told to


@dataclass
class LocalStudy:
    """A study as its folder tells of it."""

    study: str
    folder: Path
    state: str
    started: float | None  # the latest session, seconds since 1970
    took: float  # seconds of all sessions
    process: str  # who runs it: "process 12 on host"; empty where nobody does


def local_studies(storage: str) -> dict[str, LocalStudy]:
    """The studies of a storage, by name.

    Raises:
        InputError: there is no such folder.
    """
    folder = storage_folder(storage)
    if not folder.is_dir():
        raise InputError(
            f"--storage: there is no folder {folder}; give the studies' folder, or --address for a cluster"
        )
    return {path.parent.name: _read(path.parent) for path in sorted(folder.glob(f"*/{STARTED}"))}


def _read(folder: Path) -> LocalStudy:
    sessions = []
    with contextlib.suppress(OSError, ValueError):
        sessions = json.loads((folder / ACCOUNT).read_text())["sessions"]
    process = who_runs(folder)
    run = None if process else StudyRun.read(folder)
    return study_from(folder, sessions, run and run.status, process)


def study_from(folder: Path, sessions: list[dict[str, Any]], status: str | None, process: str) -> LocalStudy:
    """A study, by what its files say.

    Args:
        folder: where it lies, or is to lie on this machine.
        sessions: those of its account.
        status: of its parent run; None where there is none.
        process: who runs it; empty where nobody does.
    """
    state = RUNNING if process else STATES.get(status, INTERRUPTED)
    return LocalStudy(
        study=folder.name,
        folder=folder,
        state=state,
        started=sessions[-1]["started"] if sessions else None,
        took=sum(sum(one["wall_s"].values()) for one in sessions),
        process=process,
    )


def who_runs(folder: Path) -> str:
    """The process that is at the study of a folder; empty where none is."""
    if not (folder / LOCK).exists():
        return ""
    with open(folder / LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read().strip() or "a process that is just beginning"
    return ""


def log_of(study: LocalStudy) -> Path:
    """Where the lines of a study are; of one that an earlier version ran on a terminal there are but libraries'."""
    path = study.folder / CONSOLE
    return path if path.exists() else study.folder / LOG


def stop(study: LocalStudy, process: Callable[[], str], every_s: float) -> None:
    """Has a study end as Ctrl-C does, and waits until it has.

    Args:
        process: tells who runs it now.
        every_s: how often it is asked.

    Raises:
        InputError: it runs on another machine, is another user's, or does not end.
    """
    found = re.fullmatch(r"process (\d+) on (\S+)", study.process)
    if not found or found[2] != os.uname().nodename:
        raise InputError(f"STUDY: '{study.study}' is run by {study.process}; stop it there")
    try:
        os.kill(int(found[1]), signal.SIGTERM)  # not SIGINT: what a shell starts in the background may ignore that
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise InputError(f"STUDY: '{study.study}' is run by another user's {study.process}") from error
    deadline = time.monotonic() + STOP_S
    while process() == study.process:
        if time.monotonic() > deadline:
            raise InputError(f"STUDY: '{study.study}' does not end; at once: kill -KILL {found[1]}")
        time.sleep(every_s)


def resume(study: LocalStudy, storage: str) -> int:
    """Has a study go on in the background; returns the exit code of the command that starts it there.

    Raises:
        InputError: its space file is gone.
    """
    script = Path(__file__).with_name("run.py")
    words = ["--space", str(space_of(study.folder)), "--name", study.study, "--storage", storage]
    sys.stdout.flush()
    return subprocess.run([sys.executable, str(script), *words, "--resume", "--detach"], check=False).returncode
