"""A study that is handed to a cluster: checked here, uploaded with its code as a Ray job, and followed.

The job runs the same command on the cluster's head. Secrets do not go along: Ray shows a job's environment to all who
may see its dashboard, so the cluster's own environment has them.
"""

import contextlib
import json
import os
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from search import cluster_jobs
from search.cluster_jobs import BEGUN, GOING, STOP_WAIT_S, STUDY, SUBMITTED, StudyJob
from search.job_package import package
from search.paths import is_url, storage_folder
from search.resume import typed
from search.settings import Settings, check_urls, resolve
from search.space_file import load_space
from search.tracking.credentials import FROM_ENVIRONMENT, NOTIFY_URL, TYPED, shown
from search.values import parse_sets
from trainables.errors import InputError

NO_AGENT, NO_AGENT_S = (
    "No available agent",
    60.0,
)  # what Ray says of a head that is still starting; how long that may be
BEGINS_S = 120.0  # how long a job may take to start its study, before it is left to itself
PYTHON_MISSING = 127  # a shell's exit code for a command that is not there
PLACES = ("data_dir", "teacher_weights", "student_weights", "teacher_store_at")  # fields that name files


def job_address(flags: dict[str, Any], sets: list[str]) -> str | None:
    """The dashboard that the flags name; None where the study runs here, or joins a cluster from here."""
    address = parse_sets(sets, []).get("address") or flags.get("address")
    return address if "://" in str(address or "") else None


def submit_study(arguments, flags: dict[str, Any], sets: list[str], address: str, unnamed) -> int:
    """Submits the study that the flags describe; follows it to its end, unless `--detach` says not to.

    Args:
        flags, sets: what was typed, without secrets.
        unnamed: gives a study's name by its space file and scale.

    Returns:
        The exit code: of the study where it is followed, and where it was refused or failed before it began.

    Raises:
        InputError: what can be known here to be wrong, or a cluster that does not answer or let us in.
    """
    address = cluster_jobs.checked_address(address)
    sets = [item for item in sets if item.partition("=")[0] != "address"]
    flags = {**flags, "address": "auto"}
    study = load_space(arguments.space)
    if arguments.resume:  # what it was started with is in its storage, where the job reads it
        given = {**study.fields, **flags, **parse_sets(sets, [])}
        if "name" not in given:
            raise InputError("--resume: give the study's --name")
        settings = Settings.model_construct(**given)
    else:
        settings = resolve(study, {"name": "unnamed", **flags, "space": arguments.space}, sets)
        if settings.name == "unnamed":
            settings = settings.model_copy(update={"name": unnamed(arguments.space, settings.scale)})
    check_places(settings, sets)
    flags = {**flags, "name": settings.name, "storage": settings.storage}
    client = cluster_jobs.connect(address)
    job = submit(client, Path(arguments.space), Path.cwd(), flags, sets, arguments.resume, arguments.dry_run)
    detach = arguments.detach and not arguments.dry_run
    if detach:
        print(f"study {settings.name} is job {job} of {address}; it goes on without this machine", flush=True)
    try:
        ended = _ended_before_it_began(client, job) if detach else cluster_jobs.follow(client, job)
    except KeyboardInterrupt:
        print(f"\nno longer followed; study {settings.name} goes on as job {job}")
        print("\n".join(how_to_follow(client, settings.name, settings.storage, address)), flush=True)
        return 130
    if detach and ended is None:
        print("\n".join(how_to_follow(client, settings.name, settings.storage, address)), flush=True)
        return 0
    return 1 if ended is None else _told(ended)


def submit(
    client,
    space: Path,
    folder: Path,
    flags: dict[str, Any],
    sets: list[str],
    resume: bool = False,
    dry_run: bool = False,
) -> str:
    """Uploads the code and starts the job; returns Ray's id of it.

    Args:
        space: the space file, on this machine.
        folder: the one whose modules go along.
        flags, sets: the study's; its name and storage among the flags.

    Raises:
        InputError: the study is a running job already, or Ray refuses the upload.
    """
    name = flags["name"]
    sessions = cluster_jobs.study_jobs(client).get(cluster_jobs.key_of(name, flags["storage"]), [])
    if going := [one for one in sessions if one.state in GOING]:
        raise InputError(f"--name: study '{name}' is {going[0].state} as job {going[0].job}; stop that one first")
    submitted = {"space": str(space.resolve()), "folder": str(folder.resolve()), "flags": flags, "sets": sets}
    with tempfile.TemporaryDirectory(prefix="ofakd-job-") as place:
        inside, note = package(space, folder, Path(place))
        if note:
            print(f"note: {note}", file=sys.stderr)
        command = typed(inside, flags, sets, resume) + (" --dry-run" if dry_run else "")
        about = {} if dry_run else {STUDY: name, SUBMITTED: json.dumps(submitted)}
        return start_job(client, name, command, Path(place), about)


def start_job(client, name: str, command: str, working_dir: Path, about: dict[str, str]) -> str:
    """Starts a command on the head as a job that has time to end well; returns Ray's id of it.

    Args:
        name: how the id begins.
        working_dir: what is uploaded, and where the command runs.
        about: the job's metadata.

    Raises:
        InputError: Ray refuses it.
    """
    job = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    environment = {
        "working_dir": str(working_dir),
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},  # read beside the command when it is to stop
    }
    deadline = time.monotonic() + NO_AGENT_S
    while True:
        try:
            return client.submit_job(
                entrypoint=command, submission_id=job, runtime_env=environment, metadata=about, entrypoint_num_cpus=0
            )
        except (OSError, RuntimeError, ValueError) as error:
            if NO_AGENT in str(error) and time.monotonic() < deadline:
                time.sleep(1)
                continue
            problem = " ".join(str(error).split())[:300]
            raise InputError(f"--address: the cluster takes no job ({problem})") from error


def resubmit(client, last: StudyJob, begun: bool) -> str:
    """Has a study that was submitted by `submit` go on; returns Ray's id of the new job.

    Args:
        begun: whether there is something to go on with; else it begins.

    Raises:
        InputError: it is running, or this machine lacks what it takes.
    """
    submitted = last.submitted
    if not submitted:
        raise InputError(
            f"STUDY: '{last.study}' was submitted by hand; do that again with --resume --name {last.study}"
        )
    space, folder = Path(submitted["space"]), Path(submitted["folder"])
    for path, what in ((space, "space file"), (folder, "folder with its modules")):
        if not path.exists():
            again = f"search/run.py --space FILE --name {last.study} --resume --storage … --address … --detach"
            raise InputError(f"STUDY: this machine has no {path}, the {what} of '{last.study}'; go on with: {again}")
    return submit(client, space, folder, submitted["flags"], submitted["sets"], resume=begun)


def check_places(settings: Settings, sets: list[str]) -> None:
    """What names a place of this machine, or has a secret, though the study is to run elsewhere.

    Args:
        sets: what goes along as it was typed.

    Raises:
        InputError: one line each.
    """
    problems = check_urls(settings)
    fix = "give an absolute path that all nodes of the cluster have, or a URL"
    if not is_url(settings.storage) and not storage_folder(settings.storage).is_absolute():
        problems.append(f"storage: '{settings.storage}' is a folder of this machine; {fix}: --storage /shared/runs")
    for name in PLACES:
        value = getattr(settings, name, None)
        if value and "://" not in value and not Path(value).is_absolute():
            problems.append(f"{name}: '{value}' is a path of this machine; {fix}")
    data = getattr(settings, "data", "")
    if "://" not in data and not Path(data).is_absolute() and (Path(data).exists() or data.startswith(".")):
        problems.append(f"data: '{data}' is a folder of this machine; {fix}")
    for one in settings.warm_start:
        if one.endswith(".json") and not Path(one).is_absolute():
            problems.append(f"warm_start: '{one}' is a file of this machine; {fix}")
    uri = getattr(settings, "tracking_uri", None) or ""
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        problems.append(f"tracking_uri: {shown(uri)} is a file of this machine; give an absolute path: sqlite:////…")
    for name, _, value in (item.partition("=") for item in sets):
        if shown(value) != value:
            problems.append(
                f"{name}: it has a password, which does not go along with a job; have it on the head instead"
            )
    for name in os.environ.get(TYPED, "").split():
        instead = f"--set notify={FROM_ENVIRONMENT}{name}" if name == NOTIFY_URL else "--tracking-uri without it"
        problems.append(
            f"{name}: a secret does not go along with a job, whose settings Ray shows; give {instead}, and have {name} "
            "in the environment that `ray start` has on the head"
        )
    if problems:
        raise InputError(problems)


def how_to_follow(client, name: str, storage: str, address: str) -> list[str]:
    """What to type to see, follow and stop a study of a cluster."""
    studies: Iterable[cluster_jobs.Key] = ()
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # who follows no longer may have lost the cluster
        studies = cluster_jobs.study_jobs(client)

    def words(action: str, *more: str) -> str:
        return command_for(action, name, storage, address, studies, *more)

    return [f"look:   {words('status')}", f"follow: {words('logs', '--follow')}", f"stop:   {words('stop')}"]


def command_for(
    action: str, name: str, storage: str | None, address: str, studies: Iterable[cluster_jobs.Key], *more: str
) -> str:
    """What to type to do something with a study of a cluster.

    Args:
        storage: where it lies; it is named where the cluster has other studies of that name.
        studies: all that the cluster has.
        more: further flags.
    """
    where = [] if address == cluster_jobs.DEFAULT else ["--address", address]
    apart = ["--storage", storage or ""] if cluster_jobs.is_ambiguous(studies, name) else []
    if apart and not where:  # alone it would mean the studies of this machine
        where = ["--address", address]
    return shlex.join(["python", "search/jobs.py", action, name, *more, *where, *apart])


def _ended_before_it_began(client, job: str) -> StudyJob | None:
    """Waits until a study has begun, since much can be refused on the cluster alone; how it ended where it did so
    before, after its log was printed; None where it goes on, or nobody knows within `BEGINS_S`."""
    deadline = time.monotonic() + BEGINS_S
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # the cluster may be hard to reach for a moment
        while time.monotonic() < deadline:
            found, log = cluster_jobs.read_job(client, job), client.get_job_logs(job)
            if BEGUN.search(log) or found.state == cluster_jobs.DONE:
                return None
            if found.state not in GOING:
                print(log, end="", file=sys.stderr)
                return found
            time.sleep(0.5)
    return None


def _told(ended: StudyJob) -> int:
    """The exit code of a job that was followed; why it ended where the job could not say so itself."""
    if ended.code == PYTHON_MISSING:
        print("error: the head has no `python` on the PATH that `ray start` had", file=sys.stderr)
    elif ended.state == cluster_jobs.FAILED and ended.code is None:
        print(f"error: the job failed: {ended.message[:300]}", file=sys.stderr)
    return cluster_jobs.exit_code_of(ended)
