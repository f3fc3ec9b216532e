"""Studies of an object store, as it tells of them itself, whatever copies of them this machine has."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from search.account import ACCOUNT
from search.lease import holder
from search.local_studies import LOG, LocalStudy, study_from, who_runs
from search.session_log import CONSOLE
from search.storage import FETCH_S, STARTED, Storage
from search.tracking.study_run import FILE
from trainables.errors import InputError
from trainables.persist import persist
from trainables.remote import SIDE_BY_SIDE


def remote_studies(storage: Storage) -> dict[str, LocalStudy]:
    """The studies of a store, by name.

    Raises:
        InputError: there is nothing, or the store cannot be used.
    """
    names = storage.reach(storage.remote.folders)
    if not names:
        raise InputError(f"--storage: there is nothing in {storage}; give the studies' URL, or --address for a cluster")
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        found = pool.map(lambda name: remote_study(storage, name), names)
        return {one.study: one for one in found if one}


def remote_study(storage: Storage, name: str) -> LocalStudy | None:
    """The study of a name; None where there is none."""
    remote, folder = storage.remote.at(name), storage.root / name
    if persist(lambda: remote.read(STARTED), FETCH_S) is None:
        return None
    account, run = (_content(persist(lambda file=file: remote.read(file), FETCH_S)) for file in (ACCOUNT, FILE))
    return study_from(folder, account.get("sessions", []), run.get("status"), who_runs_there(storage, name))


def who_runs_there(storage: Storage, study: str) -> str:
    """The process that is at a study, by its lease or, on this machine, its lock; empty where none is."""
    return persist(lambda: holder(storage.remote.at(study)), FETCH_S) or who_runs(storage.root / study)


def log_there(storage: Storage, study: str) -> str:
    """The lines of a study, as far as the store has them."""
    remote = storage.remote.at(study)
    found = (persist(lambda name=name: remote.read(name), FETCH_S) for name in (CONSOLE, LOG))
    return next((content for content in found if content is not None), b"").decode(errors="replace")


def _content(found: bytes | None) -> dict[str, Any]:
    """What a file says; nothing, where it is missing or broken."""
    with contextlib.suppress(ValueError):
        return json.loads(found or b"{}")
    return {}
