"""What the broker knows of a trial, and the file by which a broker whose process was killed knows it again."""

import base64
import errno
import hmac
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

COMPACT_BYTES = 8 * 2**20  # a journal that is longer, and mostly of trials that are gone, is written anew
SIGNATURE_BYTES = 32
RETRY_S = 1.0  # how often a disk that is full is tried, at most

log = logging.getLogger(__name__)


@dataclass
class BrokeredTrial:
    """One trial between Tune's proxy and the lanes."""

    trial_id: str
    job: dict[str, Any]
    judged: bool  # each of its reports waits for a verdict
    place: float  # in the queue: the smallest comes first
    queued: bool = True
    queued_since: float = 0.0  # seconds since 1970
    lane: int | None = None  # where it is, or was last
    held: bool = False  # its lane has it
    attempt: int = 0
    begun: bool = False  # the lane has told that it got this attempt
    hung: int = 0  # the attempt that hung last
    worker: dict[str, Any] = field(default_factory=dict)  # who trains it, the handle as text
    # Since its last epoch:
    deaths: int = 0  # of a process that trained just this one; what it will meet again counts for more than one
    tries: int = 0  # the attempts that these ended
    company_deaths: int = 0  # of one that trained others too
    losses: int = 0  # of one that was lost by no fault of its
    disks: list[str] = field(default_factory=list)  # nodes that had no room for what it wrote
    last_error: str = "its worker died"
    stopped: bool = False
    over: bool = False
    noted: int = 0  # the attempt that has noted what it met
    disk: int = 0  # the attempt that met a full disk last
    moved: int = 0  # the attempt that did so for its node's own
    hopeless: bool = False  # another attempt would meet the same error
    forgotten: bool = False
    alone: bool = False
    epoch: int = 0  # the last one reported
    answered: int = 0  # the last one that Tune has given its verdict on
    waited_s: float = 0.0  # in the queue, all attempts together
    heard: float = 0.0  # when its lane took it or last told of it, seconds since 1970

    @property
    def whole(self) -> bool:
        """Whether all its epochs were reported: nothing of it is left to run."""
        return self.job.get("kind") == "trial" and self.epoch >= self.job.get("config", {}).get("epochs", math.inf)


class BrokerJournal:
    """Appends each change as a line of JSON; a trial's last line says how it stands, its events come in their order.

    Args:
        path: the file, read first where it is there; None keeps nothing.
        key: what only this session's brokers know; it signs what is unpickled.
    """

    def __init__(self, path: Path | None, key: bytes = b""):
        self._key = key
        self._path, self._file, self._size, self._limit = path, None, 0, COMPACT_BYTES
        self._behind = False  # the file lacks something, or ends in half a line: it is to be written anew
        self._told, self._next_try = False, 0.0
        self.trials: dict[str, BrokeredTrial] = {}
        self.events: dict[str, list[tuple[str, Any]]] = {}
        self.leaving: set[int] = set()  # lanes that are to quit
        self.disks: list[tuple[str, str]] = []  # nodes that had no room for what trials wrote, and what these met
        self.closed = False
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._read(path)
            self._behind = True
            self.catch_up()

    def trial(self, trial: BrokeredTrial) -> None:
        """Keeps how a trial stands."""
        known = trial.trial_id in self.trials
        self.trials[trial.trial_id] = trial
        self.events.setdefault(trial.trial_id, [])
        state = asdict(trial)
        if known:
            del state["job"]  # the longest part, and it stays as it was
        self._write(["trial", state])

    def event(self, trial_id: str, kind: str, payload: Any) -> None:
        """Keeps what the trial's proxy is told."""
        self.events[trial_id].append((kind, payload))
        self._write(["event", trial_id, kind, payload])

    def gone(self, trial_id: str) -> None:
        """Forgets a trial."""
        del self.trials[trial_id], self.events[trial_id]
        self._write(["gone", trial_id])
        if self._size > self._limit and not self._behind:
            try:
                self._compact()
            except OSError:  # no room for a second one; the first goes on
                self._limit = 2 * self._size

    def leaves(self, lane: int, leaves: bool) -> None:
        """Keeps whether a lane is to quit."""
        if leaves != (lane in self.leaving):
            self.leaving ^= {lane}
            self._write(["leaves", lane, leaves])

    def disk(self, node: str, error: str) -> None:
        """Keeps that a node had no room for what a trial wrote."""
        self.disks.append((node, error))
        self._write(["disk", node, error])

    def close(self) -> None:
        """Keeps that no more is to be done."""
        self.closed = True
        self._write(["closed"])

    def as_text(self, worker: dict[str, Any]) -> dict[str, Any]:
        """A worker as the journal keeps it: a broker that is started again must still be able to have it killed.

        Ray has a handle as a pickle alone, and whoever can write the file could have a pickle run anything: so it is
        signed.
        """
        if "handle" not in worker:
            return worker
        from ray import cloudpickle

        pickled = cloudpickle.dumps(worker["handle"])
        return worker | {"handle": base64.b64encode(self._signature(pickled) + pickled).decode()}

    def handle_of(self, worker: dict[str, Any]) -> Any:
        """The handle of a worker as the journal keeps it, None where it has none that is signed."""
        if "handle" not in worker:
            return None
        from ray import cloudpickle

        kept = base64.b64decode(worker["handle"])
        signature, pickled = kept[:SIGNATURE_BYTES], kept[SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(pickled)):
            log.warning("the broker's journal has a worker that this session has not written")
            return None
        return cloudpickle.loads(pickled)

    def _signature(self, pickled: bytes) -> bytes:
        return hmac.digest(self._key, pickled, "sha256")

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        for line in path.read_text().splitlines():
            try:
                kind, *rest = json.loads(line)
            except ValueError:  # the last one, cut off with the process
                continue
            if kind == "trial":
                state = rest[0]
                known = self.trials.get(state["trial_id"])
                job = {"job": known.job} if known else {}
                self.trials[state["trial_id"]] = BrokeredTrial(**{**state, **job})
                self.events.setdefault(state["trial_id"], [])
            elif kind == "event":
                self.events[rest[0]].append((rest[1], rest[2]))
            elif kind == "gone":
                del self.trials[rest[0]], self.events[rest[0]]
            elif kind == "leaves":
                (self.leaving.add if rest[1] else self.leaving.discard)(rest[0])
            elif kind == "disk":
                self.disks.append((rest[0], rest[1]))
            else:
                self.closed = True

    def catch_up(self) -> None:
        """Writes the journal anew where it lacks something, as soon as the disk takes it."""
        if not self._behind or time.monotonic() < self._next_try:
            return
        self._next_try = time.monotonic() + RETRY_S
        try:
            self._compact()
        except OSError as error:
            if not self._told:
                log.warning("the broker's journal is not written, so the broker must not die: %s", error)
            self._told = True
        else:
            self._behind = self._told = False

    def _compact(self) -> None:
        """Writes the journal anew, whole or not at all, with the trials that are left.

        Raises:
            OSError: the disk does not take it; the file is as it was.
        """
        partial = self._path.with_suffix(".partial")
        file, size = os.open(partial, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666), 0
        try:
            for entry in self._entries():
                size += _append(file, entry)
            os.replace(partial, self._path)
        except BaseException:
            os.close(file)
            partial.unlink(missing_ok=True)
            raise
        if self._file is not None:
            os.close(self._file)
        # Where most of it is of trials that are left, it is not to be written anew at each that goes.
        self._file, self._size, self._limit = file, size, max(COMPACT_BYTES, 2 * size)

    def _entries(self) -> Iterator[list[Any]]:
        """All that is to be known, in few lines."""
        for trial in self.trials.values():
            yield ["trial", asdict(trial)]
            for event in self.events[trial.trial_id]:
                yield ["event", trial.trial_id, *event]
        for lane in self.leaving:
            yield ["leaves", lane, True]
        for node, error in self.disks:
            yield ["disk", node, error]
        if self.closed:
            yield ["closed"]

    def _write(self, entry: list[Any]) -> None:
        """Adds what was just changed. A disk that does not take it fails no call: nobody would learn of what the call
        has changed."""
        if self._path is None:
            return
        if not self._behind:
            try:
                self._size += _append(self._file, entry)
            except OSError:
                self._behind = True
        self.catch_up()


def _append(file: int, entry: list[Any]) -> int:
    """Writes one line to the end at once, so that a process that is killed leaves whole ones; how many bytes it has.

    Raises:
        OSError: it was not written, or not whole.
    """
    line = (json.dumps(entry) + "\n").encode()
    written = os.write(file, line)
    if written < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return written
