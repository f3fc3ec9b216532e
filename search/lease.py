"""One session a study, where the study lies in an object store: who is at it says so there, again and again.

What a killed session leaves ends by itself. Ages are told by the store's own clock, so that those of two machines do
not matter.
"""

import contextlib
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from search.mirroring import CLOSE_S, Mirroring, Plain
from search.storage import SESSION, Storage, keep_writers, last_session, token_in, written_by
from trainables.errors import InputError
from trainables.persist import Gone
from trainables.remote import Remote

RENEWED_EVERY_S, STALE_S = 10.0, 60.0
SETTLE_S = 1.0  # of two that take over the same lease the later one has it, which both see after this
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Lease:
    """A session's claim to a study.

    Args:
        remote: the study's folder in the store.
        study: its name.

    Attributes:
        token: the session's own.
        before: the last session's, None where this is the first; known once it is taken.
    """

    def __init__(self, remote: Remote, study: str):
        self._remote, self._study = remote, study
        self.token, self.before = uuid.uuid4().hex, None
        self._holder = {"token": self.token, "pid": os.getpid(), "host": os.uname().nodename, "boot": _boot()}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._lost: Callable[[], None] = lambda: None
        self._renewed = 0.0

    def take(self) -> None:
        """Takes it.

        Raises:
            InputError: another session has it.
        """
        self._refuse(self._read())
        try:
            self._write(new=self.before is None)
        except FileExistsError:  # somebody was first
            self._refuse(self._read())
            self._write()
        if self.before is not None:
            self._ending.wait(SETTLE_S)
            self._refuse(self._read())

    def confirm(self) -> None:
        """Makes sure that this session still has it; asks the store where it was long ago that it was renewed.

        To be called before anything is written: a session that was cut off must not undo what another one has done
        meanwhile.

        Raises:
            Gone: another session has it.
        """
        if _clock() - self._renewed > STALE_S / 2:
            if token_in(self._remote.read(SESSION)) not in (self.token, None):
                self._lost()
                raise Gone("another session has the study")
            self._write()

    def hold(self, lost: Callable[[], None]) -> None:
        """Keeps it from now on.

        Args:
            lost: called once, in a thread, where another session has taken it: this one was away for too long.
        """
        self._lost = lost
        self._thread.start()

    def release(self) -> None:
        """Lets others have it."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        if token_in(self._remote.read(SESSION)) == self.token:
            self._write(free=True)

    def _keep(self) -> None:
        while not self._ending.wait(RENEWED_EVERY_S):
            try:
                if token_in(self._remote.read(SESSION)) not in (self.token, None):
                    self._lost()
                    return
                self._write()
            except Exception:  # the store is away, or this machine cut off from it
                continue

    def _write(self, new: bool = False, free: bool = False) -> None:
        content, now = {**self._holder, "free": free}, _clock()
        self._remote.write(SESSION, json.dumps(content).encode(), new=new)
        self._renewed = now

    def _read(self) -> dict[str, Any]:
        content = self._remote.read(SESSION)
        return json.loads(content) if content else {}

    def _refuse(self, holder: dict[str, Any]) -> None:
        """Raises: InputError: there is a holder, which is not this session."""
        if not holder or holder["token"] == self.token:
            return
        self.before = holder["token"]
        if holder["free"] or self._died(holder):
            return
        left = STALE_S - self._age()
        if left > 0:
            raise InputError(
                f"--name: study '{self._study}' is being run (process {holder['pid']} on {holder['host']}); stop that "
                f"one first; if it was killed, its lease ends in {left:.0f} s"
            )

    def _died(self, holder: dict[str, Any]) -> bool:
        """Whether it was a process of this machine that is there no more."""
        if any(holder[name] != self._holder[name] for name in ("host", "boot")):
            return False
        try:
            os.kill(holder["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _age(self) -> float:
        """Seconds since it was renewed."""
        name = f".now-{self.token}"
        self._remote.write(name, b"")
        now = self._remote.about(name).when
        self._remote.remove(name)
        return now - self._remote.about(SESSION).when


def holder(remote: Remote) -> str:
    """Who runs a study, by its lease: "process 12 on host"; empty where nobody does.

    That is also where it was let go of, where it was not renewed for too long, and where its process, which was one of
    this machine, has died.

    Args:
        remote: the study's folder in the store.
    """
    lease = Lease(remote, "")
    found = lease._read()
    if not found or found["free"] or lease._died(found):
        return ""
    try:
        age = lease._age()
    except PermissionError:  # the store may be read alone, and tells no time then
        age = time.time() - remote.about(SESSION).when
    except FileNotFoundError:  # the study was removed meanwhile
        return ""
    if age >= STALE_S:
        return ""
    namesake = found["host"] == os.uname().nodename and found["boot"] != _boot()
    return f"process {found['pid']} on {found['host']}{', another machine of this name' if namesake else ''}"


@contextlib.contextmanager
def mirrored(storage: Storage, folder: Path) -> Iterator[Plain]:
    """Within this, the session's own, the store is given what is written to a study's folder.

    Raises:
        InputError: another session is at the study, or the store cannot be used.
    """
    if storage.remote is None:
        yield Plain()
        return
    storage.check(write=True)
    remote = storage.remote.at(folder.name)
    lease, mine = Lease(remote, folder.name), written_by(folder)
    if last_session(remote) in mine:  # what is here is the newest: a kill after the lease is taken forgets nothing
        keep_writers(folder, [*mine, lease.token])
    try:
        storage.reach(lease.take)
    except InputError:
        keep_writers(folder, mine)
        raise
    newest_here = lease.before in mine
    if not newest_here:
        keep_writers(folder, mine)
    try:
        storage.bring(folder.name, asked="", before=lease.before or "")
    except BaseException:
        with contextlib.suppress(Exception):
            lease.release()
        raise
    keep_writers(folder, [lease.token])
    mirroring = Mirroring(remote, folder, synced=not newest_here, confirm=lease.confirm)
    lease.hold(mirroring.lost)
    try:
        yield mirroring
    finally:
        at_once = isinstance(sys.exception(), KeyboardInterrupt)
        if not mirroring.close(0.0 if at_once else CLOSE_S) and not at_once:
            print(
                f"warning: {remote.url} lacks some of what this session wrote; it is in {folder}, and "
                "search/sync.py or --resume on this machine brings it there",
                file=sys.stderr,
            )
        with contextlib.suppress(Exception):  # one that is away: the lease ends by itself
            lease.release()
            if mirroring.forgotten:
                remote.remove_all()


def _clock() -> float:
    """Seconds, those included for which the machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot() -> str:
    return BOOT.read_text().strip() if BOOT.exists() else ""
