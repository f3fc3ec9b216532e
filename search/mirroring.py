"""The object store is given what a session writes to its working copy of the study, and first what others build on.

A trial's record is there before its epoch's verdict is sent, and Optuna's journal before the first record of a trial;
so a session may be killed anywhere, and what the store has is a state that a study on a disk could be left in.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from search.ledger import RUNNING, Ledger, TrialRecord
from search.storage import JOURNAL, OWN, lanes_file
from search.tracking.credentials import masked
from search.tracking.curve import CURVE
from trainables.errors import one_line
from trainables.files import CHECKPOINT, LOG, RECORD, TEST
from trainables.persist import Gone, persist
from trainables.remote import Remote, names_of

SCAN_S = 2.0  # between two looks for what has changed
MB_A_SCAN = 1.0  # a file of so many megabytes is looked at each time, one of ten times as many every tenth
CLOSE_S = 120.0  # how long a session waits at its end for a store that is away
WORKERS = 8
PASSING = (".partial", ".lock")  # how the names end of files that are not there for long
NOT_OURS = ("ray", "teacher")  # folders of a study whose files are of a session, or of the lane that fits the teacher

log = logging.getLogger(__name__)


class Plain:
    """The mirroring of a study whose folder is the study itself: there is nothing to do."""

    def hear(self, function: Callable[[str], None]) -> None:
        """Has a function told, in a thread, what a person should know."""

    def watch(self, ledger: Ledger) -> None:
        """Has the store given every record that is saved from now on."""

    def after(self, record: TrialRecord, then: Callable[[], object]) -> None:
        """Calls a function once the store has a record, which is saved, as it is now."""
        then()

    def ended(self, record: TrialRecord, then: Callable[[], object]) -> None:
        """The record's trial has ended: what it leaves is brought here, and then a function is called."""
        then()

    def tidy(self, ledger: Ledger) -> None:
        """No lane is left: removes the checkpoints of all trials that have ended, and brings the last words."""

    def settle(self, wait_s: float = CLOSE_S) -> bool:
        """Waits for what was asked for; False where the store was away for so long."""
        return True

    def flush(self, wait_s: float = CLOSE_S) -> bool:
        """Has the store given everything; False as `settle`."""
        return True

    def forget(self) -> None:
        """The study is no more: the store loses it, too."""


class Mirroring(Plain):
    """The mirroring of a study's working copy.

    Args:
        remote: the study's folder in the store.
        folder: the working copy.
        synced: whether what lies there now is as it is in the store; else it is newer.
        confirm: called before each writing; raises `Gone` where the study is another session's by now.
    """

    def __init__(self, remote: Remote, folder: Path, synced: bool, confirm: Callable[[], None] = lambda: None):
        self._remote, self._folder, self._confirm = remote, Path(folder), confirm
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="storage")
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._known: dict[str, tuple[int, int]] = {}  # what the store has, by size and time here
        for name in names_of(self._folder):
            if synced or lanes_file(name):
                self._known[name] = self._stamp(name)
        self._hear: Callable[[str], None] = log.warning
        self._away_since: float | None = None
        self._state, self._pending, self._gone, self.forgotten = threading.Condition(), 0, False, False
        self._closing = threading.Event()
        self._scanning = threading.Thread(target=self._scan, name="mirroring", daemon=True)
        self._scanning.start()

    def hear(self, function: Callable[[str], None]) -> None:
        self._hear = function

    def watch(self, ledger: Ledger) -> None:
        ledger.watch(lambda record: self._do(lambda: self._put(self._name(ledger, record))))
        self._ledger = ledger

    def after(self, record: TrialRecord, then: Callable[[], object]) -> None:
        name = self._name(self._ledger, record)
        self._do(lambda: (self._put(name), then()))

    def ended(self, record: TrialRecord, then: Callable[[], object]) -> None:
        folder = Path(self._name(self._ledger, record)).parent

        def work() -> None:
            self._put(str(folder / RECORD))  # else its checkpoint would be missed
            self._persist(lambda: self._remote.remove(str(folder / CHECKPOINT)))
            for name in (LOG, TEST):
                self._get(str(folder / name))
            then()

        self._do(work)

    def tidy(self, ledger: Ledger) -> None:
        place = ledger.folder.name

        def work() -> None:
            found = self._remote.files(place)
            for record in ledger.records.values():
                name = f"{place}/{record.trial_id}/{CHECKPOINT}"
                if record.state != RUNNING and name in found:
                    self._put(f"{place}/{record.trial_id}/{RECORD}")
                    self._remote.remove(name)
            logs = {name: one for name, one in found.items() if Path(name).name == LOG}
            self._remote.pull_all(logs, self._folder)
            self._known |= {name: self._stamp(name) for name in logs}

        self._do(lambda: self._persist(work))

    def settle(self, wait_s: float = CLOSE_S) -> bool:
        with self._state:
            return self._state.wait_for(lambda: not self._pending, wait_s)

    def flush(self, wait_s: float = CLOSE_S) -> bool:
        end = time.monotonic() + wait_s
        self.settle(wait_s)
        for name in names_of(self._folder):
            if self._is_ours(name):
                self._do(lambda name=name: self._put(name))
        return self.settle(max(0.0, end - time.monotonic()))

    def forget(self) -> None:
        self._gone = self.forgotten = True

    def lost(self) -> None:
        """Another session has the study: nothing more goes to the store, and this session is to end."""
        self._gone = True
        self._hear("storage: another session has taken the study, as this one was not heard of for a minute; stopping")
        os.kill(os.getpid(), signal.SIGTERM)

    def close(self, wait_s: float = CLOSE_S) -> bool:
        """Gives the store the rest; False where it does not have all."""
        self._closing.set()
        whole = wait_s > 0 and self.flush(wait_s)
        self._gone = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        return whole

    def _scan(self) -> None:
        """Gives the store what changed in the study's own folder; trials' records come by themselves."""
        turn = 0
        while not self._closing.wait(SCAN_S):
            turn += 1
            paths = []
            with contextlib.suppress(OSError):  # the study is being removed
                paths = sorted(self._folder.iterdir())
            for path in paths:
                with contextlib.suppress(OSError):  # replaced or removed meanwhile
                    seldom = 1 + int(path.stat().st_size / 1e6 / MB_A_SCAN)
                    if path.is_file() and self._is_ours(path.name) and turn % seldom == 0:
                        self._put(path.name)

    def _do(self, work: Callable[[], object]) -> None:
        """Does something in a thread, which is waited for at the end."""

        def run() -> None:
            try:
                work()
            except Gone:
                pass  # the session ends; a later one goes on from what the store has
            except Exception as error:
                log.exception("mirroring")
                self._hear(f"storage: {masked(one_line(error))}")
            finally:
                with self._state:
                    self._pending -= 1
                    self._state.notify_all()

        with self._state:
            self._pending += 1
        try:
            self._pool.submit(run)
        except RuntimeError:  # closed
            with self._state:
                self._pending -= 1

    def _put(self, name: str) -> None:
        """Gives the store a file as it is now, where it has it otherwise."""
        if name not in self._known and Path(name).name == RECORD:
            self._put(JOURNAL)  # it knows of the trial before the ledger does
        with self._locks[name]:
            try:
                stamp = self._stamp(name)
                if self._known.get(name) == stamp:
                    return
                content = (self._folder / name).read_bytes()
            except FileNotFoundError:
                return
            if name == JOURNAL:  # without a line that is being written
                content = content[: content.rfind(b"\n") + 1]
            self._persist(lambda: self._remote.write(name, content))
            self._known[name] = stamp

    def _get(self, name: str) -> None:
        """Brings a file of a lane's, where there is one."""
        with self._locks[name], contextlib.suppress(FileNotFoundError):
            self._persist(lambda: self._remote.pull_all({name: self._remote.about(name)}, self._folder))
            self._known[name] = self._stamp(name)

    def _persist(self, work: Callable[[], object]) -> None:
        def attempt() -> object:
            if self._gone:
                raise Gone("the session has ended")
            self._confirm()
            return work()

        persist(attempt, float("inf"), away=self._away, given_up=lambda: self._gone)
        with self._state:
            since, self._away_since = self._away_since, None
        if since is not None:
            self._hear(f"storage: it answers again, after {time.monotonic() - since:.0f} s; nothing was lost")

    def _away(self, error: Exception) -> None:
        if self._gone:
            return
        with self._state:
            first, self._away_since = self._away_since is None, self._away_since or time.monotonic()
        if first:
            self._hear(
                f"storage: it does not answer ({masked(one_line(error))}); what is written waits, and so do lanes"
            )

    def _is_ours(self, name: str) -> bool:
        path = Path(name)
        kept = path.suffix not in PASSING and path.name != CURVE
        return kept and path.parts[0] not in NOT_OURS and name not in OWN

    def _stamp(self, name: str) -> tuple[int, int]:
        about = (self._folder / name).stat()
        return about.st_size, about.st_mtime_ns

    def _name(self, ledger: Ledger, record: TrialRecord) -> str:
        return f"{ledger.folder.name}/{record.trial_id}/{RECORD}"
