"""Where studies lie: a folder, or a URL of an object store with a working copy of it on this machine.

All code works on local paths. With a URL they are those of the working copy, which is a cache: it may be deleted while
no study runs, and another machine has one of its own.
"""

import contextlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from search.paths import is_url, storage_folder
from search.tracking.credentials import check_storage, masked
from trainables.errors import InputError, one_line
from trainables.files import CHECKPOINT, LOG, STUDENT, TEST
from trainables.persist import persist
from trainables.remote import Found, Remote, names_of

REACH_S = 15.0  # how long a store may take to answer before a command begins
LOOKED_AT = 10  # folders that may be studies, when one is named that is none
FETCH_S = 600.0  # how long a command waits for a file while the store is away
STARTED, LOCK, JOURNAL = "started.json", "lock", "optuna.log"
SESSION = "session.json"  # the lease of a study's session, see `search.lease`
TOKENS = ".sessions"  # which sessions have written to the working copy
TEACHERS, ABOUT = "teachers", "teacher.json"
LANES = (CHECKPOINT, STUDENT, LOG, TEST)  # what lanes write of a trial, whoever else may have it
LAZY = (CHECKPOINT, STUDENT)  # what comes only when it is asked for
OWN = (SESSION, TOKENS, LOCK)  # what tells of a session, and is no part of a study

T = TypeVar("T")


class Storage:
    """Where studies lie.

    Args:
        place: what --storage says.

    Attributes:
        url: the store's; None for a folder.
        root: the folder, or the working copy.
        remote: the store; None for a folder.

    Raises:
        InputError: no such store can be used from here, or its URL has a secret in it.
    """

    def __init__(self, place: str):
        if is_url(place):
            check_storage(place)
        self.root = storage_folder(place)
        self.url = place.rstrip("/") if is_url(place) else None
        self.remote = Remote(self.url) if self.url else None

    def __str__(self) -> str:
        return self.url or str(self.root)

    def url_of(self, path: Path) -> str | None:
        """Where the store has what lies at a path of the working copy; None for a folder."""
        return None if self.url is None else f"{self.url}/{path.relative_to(self.root)}"

    def check(self, write: bool) -> None:
        """Refuses a store where nothing can be read, or written.

        Raises:
            InputError: in one line, within `REACH_S`.
        """
        if self.remote is None:
            return
        name = f".check-{uuid.uuid4().hex}"

        def look() -> None:
            self.remote.read(name)
            self.remote.files(name)  # read() takes a missing bucket for a missing file
            if write:
                self.remote.write(name, b"")
                self.remote.remove(name)

        self.reach(look)

    def names(self, study: str) -> set[str]:
        """The files that the store has of a study, those of its sessions left out; of a folder's, those there."""
        if self.remote is None:
            folder = self.root / study
            return {path.name for path in folder.iterdir()} if folder.exists() else set()
        return set(self.reach(lambda: self.remote.files(study))) - {f"{study}/{name}" for name in OWN}

    def bring(self, study: str, asked: str = "--study", before: str | None = None) -> Path:
        """Has a study's files here, but for checkpoints and students, and what is known of all teachers.

        What was written here by the study's last session is newer than the store's, which may have been away.

        Args:
            study: its name.
            asked: the flag that named it, for the error message; empty: a study that is not there is none.
            before: which session was the last, empty for none; None looks.

        Returns:
            The study's folder.

        Raises:
            InputError: there is no such study.
        """
        folder = self.root / study
        if self.remote is None:
            return folder
        self.check(write=False)
        if before is None:
            before = last_session(self.remote.at(study))
        found = persist(self.remote.at(study).files, FETCH_S)
        if STARTED not in found:
            if asked:
                raise InputError(f"{asked}: there is no study '{study}' in {self.url}{self.known()}")
            if folder.exists():
                _clear(folder, {})
            return folder
        wanted = {name: one for name, one in found.items() if name not in OWN and Path(name).name not in LAZY}
        if before in written_by(folder):
            wanted = {name: one for name, one in wanted.items() if lanes_file(name) or not (folder / name).exists()}
        elif folder.exists():
            _clear(folder, found)
        folder.mkdir(parents=True, exist_ok=True)
        persist(lambda: self.remote.at(study).pull_all(wanted, folder), FETCH_S)
        self._bring_teachers()
        return folder

    def bring_if_there(self, study: str) -> None:
        """As `bring`; one that is not there is somebody else's to miss."""
        if self.remote is not None and f"{study}/{STARTED}" in self.reach(lambda: self.remote.files(study)):
            self.bring(study)

    def fetch(self, path: Path) -> Path:
        """Has a file of the working copy be there and be the store's, where that has it."""
        if self.remote is not None:
            name = str(path.relative_to(self.root))
            with contextlib.suppress(FileNotFoundError):
                persist(lambda: self.remote.pull_all({name: self.remote.about(name)}, self.root), FETCH_S)
        return path

    def give(self, *paths: Path) -> None:
        """Has the store have files of the working copy as they are."""
        if self.remote is not None:
            for path in paths:
                persist(lambda path=path: self.remote.push(path, str(path.relative_to(self.root))), FETCH_S)

    def remove(self, folder: Path) -> None:
        """Removes a folder, in the store too."""
        shutil.rmtree(folder)
        if self.remote is not None:
            persist(self.remote.at(str(folder.relative_to(self.root))).remove_all, FETCH_S)

    def shown(self, path: Path) -> str:
        """A path as people are told of it: the store's."""
        return self.url_of(path) or str(path)

    def _bring_teachers(self) -> None:
        """What is known of them, but not their weights."""
        found = persist(lambda: self.remote.files(TEACHERS), FETCH_S)
        wanted = {name: one for name, one in found.items() if Path(name).name == ABOUT}
        persist(lambda: self.remote.pull_all(wanted, self.root), FETCH_S)

    def known(self) -> str:
        """Some of the store's studies, as the end of an error message, as far as it tells them quickly."""

        def look() -> list[str]:
            return [name for name in self.remote.folders()[-LOOKED_AT:] if self.remote.read(f"{name}/{STARTED}")]

        names: list[str] = []
        with contextlib.suppress(InputError):
            names = self.reach(look)
        return f"; there are {', '.join(names[-5:])}" if names else ""

    def reach(self, work: Callable[[], T]) -> T:
        """Does what needs the store before a command begins.

        Raises:
            InputError: what keeps it from that, in one line; or the work's own.
        """
        answer: list[T] = []
        problem: list[Exception] = []

        def run() -> None:
            try:
                answer.append(work())
            except Exception as error:  # each store's client has its own
                problem.append(error)

        thread = threading.Thread(target=run, daemon=True)  # of one that hangs nobody waits for the end
        thread.start()
        thread.join(REACH_S)
        if answer:
            return answer[0]
        if problem and isinstance(problem[0], InputError):
            raise problem[0]
        raise InputError(_in_words(self.url, problem[0] if problem else None)) from (problem[0] if problem else None)


def last_session(remote: Remote) -> str:
    """Which session was the last at a study; empty where none is known."""
    return token_in(persist(lambda: remote.read(SESSION), FETCH_S)) or ""


def token_in(content: bytes | None) -> str | None:
    """Whose session it is, by the content of its lease."""
    return json.loads(content)["token"] if content else None


def lanes_file(name: str) -> bool:
    """Whether a file of a study, by its path from there, is one that lanes write."""
    return "/" in name and Path(name).name in LANES


def written_by(folder: Path) -> list[str]:
    """The sessions that have written to a working copy since it was brought: where the store's last session is one of
    them, what is here is the newest."""
    path = folder / TOKENS
    return path.read_text().split() if path.exists() else []


def keep_writers(folder: Path, tokens: list[str]) -> None:
    """Keeps what `written_by` tells."""
    (folder / TOKENS).write_text("\n".join(tokens))


def _clear(folder: Path, found: dict[str, Found]) -> None:
    """Removes what the store does not have (any more)."""
    for name in names_of(folder):
        if name not in found and name not in OWN:
            (folder / name).unlink()
    if not found:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)


def _in_words(url: str, error: Exception | None) -> str:
    """What is wrong with a store, and the fix."""
    bucket = url.partition("://")[2].partition("/")[0]
    said = masked(one_line(error)) if error else ""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    where = f" at {masked(endpoint)}" if endpoint and url.startswith("s3") else ""
    if error is None:
        return f"storage: nobody answers for {url}{where} within {REACH_S:.0f} s; check the network and the endpoint"
    if isinstance(error, FileNotFoundError):
        return f"storage: there is no bucket '{bucket}'{where}; make it, or correct {url}"
    if isinstance(error, PermissionError):
        return f"storage: {url} cannot be read and written ({said}); give these credentials access to the bucket"
    if "credentials" in type(error).__name__.lower():
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return f"storage: there are no credentials for {url}; {fix}"
    return f"storage: {url} cannot be used{where} ({said}); check the network, the endpoint and the bucket's name"
