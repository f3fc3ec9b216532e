"""Studies that are jobs of a Ray cluster: reaching its job API, and what it knows of each of them."""

import http.client
import json
import logging
import os
import re
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from search.cluster import TOKEN, bring_the_token
from trainables.errors import InputError, one_line

DEFAULT = "http://127.0.0.1:8265"  # where Ray's dashboard listens by itself
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray's own; the second may also be that of a head, without http
STUDY, SUBMITTED = "ofakd_study", "ofakd_submitted"  # of a job's metadata: the name, and what it takes to go on
REACH_S = 5.0  # how long the head may take to answer
STOP_WAIT_S = 900  # how long a study has to end once it is told to; then Ray kills it
WAITING, RUNNING, DONE, FAILED, REFUSED, INTERRUPTED = (
    "waiting", "running", "done", "failed", "refused", "interrupted"
)  # fmt: skip
GOING = (WAITING, RUNNING)
BEGUN = re.compile(r"^\[[\d:]+\] ", re.MULTILINE)  # a session's lines have its time
COMMANDS = ("run.py", "ofakd-search", "study.sh")  # those that run a study, as a job's entrypoint has them


@dataclass
class StudyJob:
    """One session of a study: a job of the cluster."""

    study: str
    job: str  # Ray's submission id
    state: str
    started: float  # seconds since 1970
    ended: float | None
    words: list[str]  # the command that the job runs
    submitted: dict[str, Any] = field(default_factory=dict)  # see `search/submission.py`; {} where it was by hand
    code: int | None = None  # the command's exit code, once it has ended by itself
    message: str = ""  # Ray's

    @property
    def took(self) -> float:
        """Seconds until its end, or until now."""
        return (self.ended or time.time()) - self.started

    def flag(self, name: str) -> str | None:
        """The value that the command gives to a flag."""
        return flag_of(self.words, name)

    @property
    def storage(self) -> str | None:
        """Where the study lies, as its command names it; None where that does not."""
        return self.flag("--storage")


Key = tuple[str, str | None]  # what tells studies apart: the name, and where they lie


def key_of(name: str, storage: str | None) -> Key:
    """What tells a study from those of other people that have its name."""
    return name, storage.removeprefix("file://").rstrip("/") if storage else None


def flag_of(words: list[str], name: str) -> str | None:
    """The value of a flag among a command's words, the last one where it is repeated."""
    found = None
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == name:
            found = following
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found


def given_address(address: str | None) -> str:
    """Where the job API is: the given address, the one in Ray's own variables, or the default.

    Raises:
        InputError: it is no URL of a dashboard.
    """
    named = next((os.environ[name] for name in ADDRESSES if os.environ.get(name, "").startswith("http")), None)
    return checked_address(address or named or DEFAULT)


def checked_address(address: str) -> str:
    """The address of a dashboard without its last slash.

    Raises:
        InputError: it is none, or has a log-in in it.
    """
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise InputError(f"--address: leave user and password out of the URL; a cluster's token belongs in {TOKEN}")
    try:
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise InputError(f"--address: '{address}' is no dashboard of a Ray cluster; give http://HEAD:8265")
    return address.rstrip("/")


def connect(address: str):
    """A `JobSubmissionClient` of a cluster that answers, lets us in and has our versions.

    Raises:
        InputError: it does not, within seconds.
    """
    bring_the_token()
    os.environ[ADDRESSES[0]] = address  # else Ray's client would take what is in the environment
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        headers = get_auth_headers_if_auth_enabled({})
    except Exception as error:  # Ray has several
        reason = str(error).partition(". ")[0]
        problem = f"the token for {address} cannot be read ({reason}); have it in {TOKEN}"
        raise InputError(f"--address: {problem}") from error
    versions = _ask(address, "/api/v0/cluster_metadata", headers).get("data") or {}
    _same_versions(address, versions)
    return JobSubmissionClient(address)


def _ask(address: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), timeout=REACH_S) as answer:
            found = json.load(answer)
        if not isinstance(found, dict):
            raise ValueError("not what a dashboard says")
        return found
    except urllib.error.HTTPError as error:
        problem = {401: f"asks for a token; put it in {TOKEN}", 403: f"refuses the token; correct it in {TOKEN}"}.get(
            error.code, f"answers {error.code} at {path}; is it the dashboard of a Ray cluster?"
        )
        raise InputError(f"--address: {address} {problem}") from error
    except (ValueError, http.client.HTTPException) as error:  # another kind of server
        raise InputError(f"--address: {address} is no dashboard of a Ray cluster; give http://HEAD:8265") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"--address: nobody answers at {address} ({getattr(reason, 'strerror', None) or reason}); is a Ray cluster "
            "with its dashboard running there?"
        ) from error


def _same_versions(address: str, versions: dict[str, str]) -> None:
    """Code that was checked here is to mean the same there."""
    ours = {"Ray": metadata.version("ray"), "Python": ".".join(map(str, sys.version_info[:2]))}
    python = str(versions.get("pythonVersion", ""))
    theirs = {"Ray": str(versions.get("rayVersion", "")), "Python": ".".join(python.split(".")[:2])}
    for name, version in ours.items():
        if theirs[name] != version:
            raise InputError(
                f"--address: the cluster at {address} has {name} {theirs[name] or 'of an unknown version'}, this "
                f"machine {version}; install the same one"
            )


def study_jobs(client) -> dict[Key, list[StudyJob]]:
    """The sessions of each study that the cluster knows: one that is going, then the latest first."""
    studies: dict[Key, list[StudyJob]] = {}
    for details in client.list_jobs():
        if details.submission_id and (job := _study_job(details)):
            studies.setdefault(key_of(job.study, job.storage), []).append(job)
    for jobs in studies.values():
        jobs.sort(key=lambda job: (job.state in GOING, job.started), reverse=True)
    return studies


def is_ambiguous(studies: Iterable[Key], name: str) -> bool:
    """Whether there are several studies of a name, in other storages."""
    return sum(key[0] == name for key in studies) > 1


def read_job(client, job: str) -> StudyJob:
    """One job as it is now, whether it is a study or not."""
    details = client.get_job_info(job)
    return _study_job(details) or _from(details, "", [])


def _study_job(details) -> StudyJob | None:
    """The study that a job is; None where it is something else."""
    try:
        words = shlex.split(details.entrypoint)
    except ValueError:
        words = details.entrypoint.split()
    name = (details.metadata or {}).get(STUDY)
    if name is None and any(PurePath(word).name in COMMANDS for word in words) and "--dry-run" not in words:
        name = flag_of(words, "--name") or details.submission_id  # submitted by hand
    return _from(details, name, words) if name else None


def _from(details, name: str, words: list[str]) -> StudyJob:
    status, code = str(getattr(details.status, "value", details.status)), details.driver_exit_code
    state = {"PENDING": WAITING, "RUNNING": RUNNING, "SUCCEEDED": DONE, "STOPPED": INTERRUPTED}.get(status)
    submitted = (details.metadata or {}).get(SUBMITTED)
    return StudyJob(
        study=name,
        job=details.submission_id,
        state=state or {2: REFUSED, 130: INTERRUPTED}.get(code, FAILED),
        started=(details.start_time or 0) / 1000,
        ended=details.end_time and details.end_time / 1000,
        words=words,
        submitted=json.loads(submitted) if submitted else {},
        code=code,
        message=" ".join((details.message or "").split("last available logs")[0].split()),
    )


def exit_code_of(job: StudyJob) -> int:
    """The code that a command ends with which followed a job to its end: the job's own where it has one of ours."""
    codes = {DONE: 0, REFUSED: 2, INTERRUPTED: 130}
    return codes.get(job.state, 1)


def follow(client, job: str) -> StudyJob | None:
    """Prints a job's log until the job has ended; None, with one line on stderr, where the cluster answers no more."""
    import asyncio

    import aiohttp

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(tail())
        return read_job(client, job)
    except (OSError, RuntimeError, ValueError, aiohttp.ClientError) as error:
        print(f"error: the cluster answers no more ({one_line(error)}); the study may go on", file=sys.stderr)
        return None
