"""Where a job's files lie on its node: in the study's folder, which all nodes share, or in copies of an object store's.

With a store, a trial has a folder of the node's own, which begins with what the store has of it (the checkpoint above
all), gives the store what changed before each report, and is removed when the trial has ended. A teacher comes to each
node once.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainables.errors import one_line
from trainables.files import CHECKPOINT, RECORD
from trainables.persist import WAIT_S, Gone, persist
from trainables.remote import Remote, names_of, working_copy
from trainables.teacher import ABOUT

PREFIX, LOCK = "ofakd-search-", "lock.partial"  # of a job's folder; who works there holds it, and it goes nowhere
TELL_S = 20.0  # how often it is told that a job waits for the store
LAST_WORDS_S = 30.0  # how long the log of a job that failed is worth waiting for


class JobFiles:
    """Of a job whose folders all nodes share: nothing is to be moved.

    Attributes:
        folder: the job's.
        teacher: the teacher's.
        shared: whether all workers see the same folder.
    """

    shared = True

    def __init__(self, job: dict):
        self.folder, self.teacher = Path(job["folder"]), Path(job["teacher_folder"])

    def bring(self) -> None:
        """Has all that the job needs lie on this node."""

    def keep(self) -> None:
        """Has all that changed kept; called before each report, by rank 0."""

    def end(self, failed: bool) -> None:
        """The job has ended, and what it wrote last is kept; that of one that failed only where the store is there."""


class NodeFiles(JobFiles):
    """Of a job whose folders lie in an object store.

    Args:
        job: `remote` is its folder's URL, `teacher_remote` the teacher's, `storage` that of everything.
        rank: each has a folder of its own.
        warn: told, in one line, that the store is away.
        waits: called again and again, in a thread, as long as the store keeps the job waiting.
    """

    shared = False

    def __init__(self, job: dict, rank: int, warn: Callable[[str], None], waits: Callable[[], None]):
        self._remote, self._rank, self._warn, self._told = Remote(job["remote"]), rank, warn, False
        self._waits = waits
        self._kept_teacher = Remote(job["teacher_remote"])
        copies, name = working_copy(job["storage"]), hashlib.sha256(job["remote"].encode()).hexdigest()[:16]
        self.teacher = copies / "teachers" / job["teacher_remote"].rpartition("/")[2]
        self._makes_teacher = job["kind"] == "teacher"
        # A teacher's folder is renamed when it is made, so it lies on the same disk as those that are kept.
        scratch = self.teacher.parent / ".making" if self._makes_teacher else Path(tempfile.gettempdir())
        self.folder = scratch / f"{PREFIX}{name}-{rank}"
        self._known: dict[str, tuple[int, int]] = {}  # what the store has, by size and time here
        self._lock: int | None = None

    def bring(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # of an attempt that was killed here
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(self.folder.parent)
        self.folder.mkdir(mode=0o700)  # not somebody else's
        self._lock = None if self._makes_teacher else _lock(self.folder)
        self._persist(self._bring)

    def _bring(self) -> None:
        found = {name: one for name, one in self._remote.files().items() if name != RECORD}
        self._remote.pull_all(found, self.folder)
        self._known = {name: _stamp(self.folder / name) for name in found}
        teacher = self._kept_teacher.files()
        if ABOUT in teacher:
            self._kept_teacher.pull_all({name: one for name, one in teacher.items() if name != ABOUT}, self.teacher)
            self._kept_teacher.pull_all({ABOUT: teacher[ABOUT]}, self.teacher)
        elif self._makes_teacher:
            shutil.rmtree(self.teacher, ignore_errors=True)  # one that the store has lost is made anew

    def keep(self) -> None:
        self._persist(self._keep)

    def _keep(self) -> None:
        """The checkpoint last: whoever goes on from it finds all that was written before it."""
        there = {name: _stamp(self.folder / name) for name in names_of(self.folder)}
        for name in sorted(there, key=lambda name: name == CHECKPOINT):
            if self._known.get(name) != there[name]:
                self._remote.push(self.folder / name, name)
                self._known[name] = there[name]
        for name in self._known.keys() - there.keys():
            self._remote.remove(name)
            del self._known[name]

    def end(self, failed: bool) -> None:
        if self._rank == 0:
            if self._makes_teacher and not failed:
                self._persist(self._keep_teacher)
            with suppress(Gone):
                self._persist(self._keep, LAST_WORDS_S if failed else WAIT_S)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _keep_teacher(self) -> None:
        if ABOUT in self._kept_teacher.files():
            return
        for name in sorted(names_of(self.teacher), key=lambda name: name == ABOUT):
            self._kept_teacher.push(self.teacher / name, name)
        for name, found in self._kept_teacher.files().items():  # the same as there, so that it need not come back
            os.utime(self.teacher / name, ns=(found.stamp_ns, found.stamp_ns))

    def _persist(self, work: Callable[[], None], wait_s: float = WAIT_S) -> None:
        with _repeated(self._waits):
            persist(work, wait_s, away=self._away)

    def _away(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            self._warn(f"storage: it does not answer, the trial waits ({one_line(error)})")


def files_of(job: dict, rank: int, warn: Callable[[str], None], waits: Callable[[], None] = lambda: None) -> JobFiles:
    """Where a job's files lie; the arguments are those of `NodeFiles`."""
    return JobFiles(job) if job.get("remote") is None else NodeFiles(job, rank, warn, waits)


@contextmanager
def _repeated(function: Callable[[], None]) -> Iterator[None]:
    """Calls a function every `TELL_S` meanwhile, as one answer of a store may take minutes; and no longer than a store
    is waited for, as a client may hang, too."""
    over = threading.Event()

    def call() -> None:
        for _ in range(int(WAIT_S / TELL_S)):
            if over.wait(TELL_S):
                return
            function()

    threading.Thread(target=call, name="waits", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _lock(folder: Path) -> int:
    """Says that a process is at work in a folder, for as long as it lives; the open file."""
    fresh = folder / f"{uuid.uuid4().hex}.partial"
    file = os.open(fresh, os.O_CREAT | os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.rename(fresh, folder / LOCK)  # it is there once it is locked
    return file


def _remove_left(parent: Path) -> None:
    """Removes the folders of processes that were killed: a node may stay for weeks, and its disk fill with them."""
    for path in parent.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), path.open() as file:  # somebody else's, or gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)


def _stamp(path: Path) -> tuple[int, int]:
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns
