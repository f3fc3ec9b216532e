"""What a study has spent: `account.json`, the wall time of every session by phase, and what ended the study.

A session is one process at the study. Each keeps an entry of its own, its command and first notes with it, which a
thread writes every other second, so that a session that is killed loses no more; what passes between two sessions is
nobody's.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trainables.errors import InputError

ACCOUNT = "account.json"
START_UP, TEACHER, SEARCH, FINALISTS, RESULTS = PHASES = ("start-up", "teacher", "search", "finalists", "results")
WRITTEN_EVERY_S = 2.0


class Account:
    """One study's account, and the entry of this session in it.

    `held` are lane-seconds: the time that lanes were at work, each for itself, on the teacher or on a trial, from when
    Tune starts it to its end. They hold a lane's GPUs then; a lane that waits for work is not counted.

    Args:
        folder: the study's.
        clock: seconds that only grow.
        command: the one that started this session, without secrets.
        notes: what it said at its start.

    Raises:
        InputError: the file of earlier sessions cannot be read.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.monotonic, *, command: str = "", notes: Iterable[str] = ()
    ):
        self._path, self._clock = Path(folder) / ACCOUNT, clock
        earlier = _read(self._path)
        self._earlier: list[dict[str, Any]] = earlier.get("sessions", [])
        self._lost_epochs = earlier.get("lost_epochs", 0)
        self._ended: dict[str, Any] = {}
        self._entry = {"started": time.time(), "command": command, "notes": list(notes), "gpus_per_lane": 0.0}
        self._entry |= {"wall_s": {}, "held_s": {}}
        self._phase, self._holding, self._at = START_UP, 0, clock()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="account", daemon=True)

    def __enter__(self):
        self.write()
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._closing.set()
        self._thread.join()
        self.write()

    @property
    def wall_s(self) -> float:
        """The wall time of all sessions until now, in seconds."""
        return sum(self.seconds().values())

    @property
    def lost_epochs(self) -> int:
        """Epochs of records that were begun anew, which the ledger knows no more."""
        return self._lost_epochs

    @property
    def ended_by(self) -> str:
        """What ended the study, in words; empty while nothing has."""
        return self._ended.get("ended_by", "")

    def phase(self, name: str) -> None:
        """What the session is at from now on, one of `PHASES`."""
        with self._lock:
            self._settle()
            self._phase = name
        self.write()

    @property
    def gpu_s(self) -> float:
        """The GPU-seconds of all sessions until now, each with the GPUs that its lanes had."""
        with self._lock:
            self._settle()
            sessions = [*self._earlier, self._entry]
            return sum(sum(gpu_seconds(one, self._entry["gpus_per_lane"]).values()) for one in sessions)

    def lanes_hold(self, gpus: float) -> None:
        """How many GPUs each of this session's lanes holds."""
        self._entry["gpus_per_lane"] = gpus

    def hold(self, lanes: int) -> None:
        """How many lanes are at work from now on."""
        with self._lock:
            self._settle()
            self._holding = lanes

    def lose(self, epochs: int) -> None:
        """A record of so many epochs gives way to a new one of the same id."""
        self._lost_epochs += epochs

    def end(self, field: str, limit: Any, reason: str) -> None:
        """Notes what ended the study: the field of the settings, its value and the reason in words."""
        self._ended = {"ended_by": reason, "ended_by_field": field, "ended_by_limit": limit}
        self.write()

    def written(self) -> None:
        """Notes that the results of the study that ended are whole."""
        self._ended["ended_by_written"] = True
        self.write()

    def seconds(self) -> dict[str, float]:
        """The wall time of all sessions by phase."""
        with self._lock:
            self._settle()
            sessions = [*self._earlier, self._entry]
            return {name: sum(one["wall_s"].get(name, 0.0) for one in sessions) for name in PHASES}

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        with self._lock:
            self._settle()
            sessions = [*self._earlier, self._entry]
            content = {"sessions": sessions, "lost_epochs": self._lost_epochs, "ended_by": "", **self._ended}
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(content, indent=1))
            os.replace(partial, self._path)

    def _settle(self) -> None:
        """Books what has passed since the last time to the phase in hand."""
        now = self._clock()
        passed, self._at = now - self._at, now
        for kind, amount in (("wall_s", passed), ("held_s", passed * self._holding)):
            self._entry[kind][self._phase] = self._entry[kind].get(self._phase, 0.0) + amount

    def _keep(self) -> None:
        while not self._closing.wait(WRITTEN_EVERY_S):
            try:
                self.write()
            except OSError:  # a full or distant disk; the next time may do
                continue


def gpu_seconds(session: dict[str, Any], otherwise: float) -> dict[str, float]:
    """What the lanes of a session held, by phase.

    Args:
        session: its entry in the account.
        otherwise: the GPUs of a lane, where an earlier version did not keep them.
    """
    gpus = session.get("gpus_per_lane", otherwise)
    return {phase: seconds * gpus for phase, seconds in session.get("held_s", {}).items()}


def how_it_ended(folder: Path) -> dict[str, Any]:
    """What ended a study's latest session, {} where nothing did: `ended_by`, `ended_by_field`, `ended_by_limit`, and
    `ended_by_written` where its results are whole.

    Raises:
        InputError: the file cannot be read.
    """
    content = _read(Path(folder) / ACCOUNT)
    return {name: value for name, value in content.items() if name.startswith("ended_by") and content["ended_by"]}


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"--resume: {path} is broken ({error}); remove it, and the time spent counts anew") from error
