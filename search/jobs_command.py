"""The command behind `search/jobs.py`, over a cluster's jobs or over a folder of studies."""

import difflib
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

from search import cluster_jobs, local_studies, remote_studies
from search.cluster_jobs import BEGUN, DONE, GOING, key_of
from search.job_package import copy_ours
from search.jobs_view import facts, progress, table
from search.paths import is_url
from search.removal import confirm, remove
from search.storage import Storage
from search.submission import command_for, how_to_follow, resubmit, start_job
from trainables.errors import InputError

UNNAMED = "not named"  # the storage of a study whose job's command names none


def run_jobs(arguments) -> int:
    """Does what was asked; returns the exit code.

    Raises:
        InputError: an unknown study, a cluster or folder that is not there, or an action that does not fit its state.
    """
    if arguments.storage and not arguments.address:
        place = OfAStore(arguments.storage) if is_url(arguments.storage) else OfAFolder(arguments.storage)
    else:
        place = OfACluster(arguments.address, arguments.storage)
    if arguments.action == "list":
        table(place.rows())
        return 0
    try:
        place.choose(arguments.study)
    except Missing as error:
        if arguments.action != "rm" or not arguments.missing_ok:
            raise
        print(f"gone already: {error.problems[0].removeprefix('STUDY: ')}")
        return 0
    return getattr(place, arguments.action)(arguments)


class Missing(InputError):
    """There is no study of that name."""


class OfACluster:
    """The studies that are jobs of a cluster.

    Args:
        address: its dashboard; None looks into the environment.
        storage: only the studies there; empty for those whose jobs name none, None for all.
    """

    def __init__(self, address: str | None, storage: str | None = None):
        self._address = cluster_jobs.given_address(address)
        try:
            self._client = cluster_jobs.connect(self._address)
        except InputError as error:
            if address is None and self._address == cluster_jobs.DEFAULT:
                fix = "give --address http://HEAD:8265, or --storage runs for the studies of this machine"
                raise InputError(f"{error.problems[0]}; {fix}") from error
            raise
        self._all = self._studies = cluster_jobs.study_jobs(self._client)
        if storage is not None:
            there = key_of("", storage)[1]
            self._studies = {key: jobs for key, jobs in self._all.items() if key[1] == there}

    def rows(self) -> list[tuple[Any, ...]]:
        """One row a study, by its job that is going, or its latest."""
        latest = sorted((jobs[0] for jobs in self._studies.values()), key=lambda job: job.started, reverse=True)
        return [
            (job.study, job.state, job.started, job.took, f"job {job.job}", job.storage or UNNAMED) for job in latest
        ]

    def choose(self, study: str) -> None:
        """Which study is meant.

        Raises:
            InputError: there is none, or several people's.
        """
        named = {key: jobs for key, jobs in self._studies.items() if key[0] == study}
        if len(named) > 1:
            places = ", ".join(jobs[0].storage or f"{UNNAMED} ('')" for jobs in named.values())
            fix = f"give --storage with the one that is meant, and --address {self._address}"
            raise InputError(f"STUDY: the cluster has several studies '{study}', in {places}; {fix}")
        by_name = {key[0]: jobs for key, jobs in self._studies.items()}
        self._jobs = _known(by_name, study, f"the cluster at {self._address}")
        self._last = self._jobs[0]

    def status(self, arguments) -> int:
        last = self._last
        where = f"--storage {last.storage or 'as its settings say'}"
        facts(last.study, last.state, last.started, last.took, f"job {last.job}", where, len(self._jobs))
        if last.state not in GOING and last.message and last.code is None:
            print(f"Ray:     {last.message[:300]}")
        progress(self._client.get_job_logs(last.job), last.state in GOING)
        return 0

    def logs(self, arguments) -> int:
        if arguments.follow:
            try:
                ended = cluster_jobs.follow(self._client, self._last.job)
            except KeyboardInterrupt:
                return 130
            return 1 if ended is None else 0
        print(self._client.get_job_logs(self._last.job), end="")
        return 0

    def stop(self, arguments) -> int:
        last = _going(self._last)
        print(f"stopping study {last.study}: running trials keep their last epoch's checkpoint", flush=True)
        told = self._client.stop_job(last.job)
        deadline = time.monotonic() + cluster_jobs.STOP_WAIT_S + 60
        while (now := cluster_jobs.read_job(self._client, last.job)).state in GOING:
            told = told or self._client.stop_job(last.job)  # not before the job has a process to be told
            if time.monotonic() > deadline:
                raise InputError(f"STUDY: '{last.study}' does not end; look at job {last.job} in {self._address}")
            time.sleep(0.5)
        print(f"study {last.study} is {now.state}; go on with it:")
        print(f"  {self._again('resume')}")
        return 0

    def resume(self, arguments) -> int:
        if self._last.state in GOING:
            raise InputError(f"STUDY: '{self._last.study}' is {self._last.state} already as job {self._last.job}")
        job = resubmit(self._client, self._last, begun=self._begun())
        print(f"study {self._last.study} goes on as job {job}")
        print("\n".join(how_to_follow(self._client, self._last.study, self._last.storage, self._address)))
        return 0

    def rm(self, arguments) -> int:
        name = _ended(self._last.study, self._last.state)
        storage = self._last.storage
        if not storage:
            raise InputError(f"STUDY: the jobs of '{name}' do not name its --storage; rm it there: --storage DIR")
        what = f"study {name} in {storage} with its MLflow runs and models, and {len(self._jobs)} job(s)"
        if not confirm(f"remove {what}?", arguments.yes):
            return 130
        if self._begun():
            code = self._remove_there(name, storage, arguments.tracking_uri)
        else:
            code = 0
            print(f"no session of it ever began there: {storage} is left as it was")
        if code == 0:
            for job in self._jobs:
                self._client.delete_job(job.job)
            print(f"deleted: {len(self._jobs)} job(s) of the cluster")
        return code

    def _begun(self) -> bool:
        """Whether the storage knew of the study: a session then prints what it does, with times, in its job's log.

        A log is in a folder of the head's, and may be gone.
        """
        if any(job.state == DONE for job in self._jobs):
            return True
        return any(BEGUN.search(self._client.get_job_logs(job.job)) for job in self._jobs)

    def _remove_there(self, study: str, storage: str, tracking_uri: str | None) -> int:
        """Removes a study where its storage is: by a job on the head, which is gone afterwards."""
        words = ["python", "search/jobs.py", "rm", study, "--storage", storage, "--yes", "--missing-ok"]
        words += ["--tracking-uri", tracking_uri] if tracking_uri else []
        with tempfile.TemporaryDirectory(prefix="ofakd-job-") as place:
            copy_ours(Path(place))
            job = start_job(self._client, f"rm-{study}", shlex.join(words), Path(place), {})
        ended = cluster_jobs.follow(self._client, job)
        if ended is None:
            return 1
        if ended.state == DONE:
            self._client.delete_job(job)
        return cluster_jobs.exit_code_of(ended)

    def _again(self, action: str) -> str:
        return command_for(action, self._last.study, self._last.storage, self._address, self._all)


class OfAFolder:
    """The studies of a folder that this machine sees."""

    LOOKS_EVERY_S = 0.5  # while it waits for lines or for a study's end

    def __init__(self, storage: str):
        self._storage, self._store = storage, Storage(storage)

    def rows(self) -> list[tuple[Any, ...]]:
        """One row a study, the latest session's first."""
        latest = sorted(self._all().values(), key=lambda study: study.started or 0, reverse=True)
        return [(one.study, one.state, one.started, one.took, one.process, self._storage) for one in latest]

    def choose(self, study: str) -> None:
        """Which study is meant."""
        self._study = _known(self._all(), study, self._storage)

    def status(self, arguments) -> int:
        one = self._study
        facts(one.study, one.state, one.started, one.took, one.process, f"--storage {self._storage}", None)
        progress(self._text(), bool(one.process))
        return 0

    def logs(self, arguments) -> int:
        printed = 0
        while True:
            going = bool(self._process())  # asked first: it may print as it ends
            text = self._text()
            print(text[printed:], end="", flush=True)
            printed = len(text)
            if not (arguments.follow and going):
                return 0
            time.sleep(self.LOOKS_EVERY_S)

    def stop(self, arguments) -> int:
        _going(self._study)
        print(f"stopping study {self._study.study}: running trials keep their last epoch's checkpoint", flush=True)
        local_studies.stop(self._study, self._process, self.LOOKS_EVERY_S)
        print(f"study {self._study.study} has ended; go on with it:")
        print(f"  {shlex.join(['python', 'search/jobs.py', 'resume', self._study.study, '--storage', self._storage])}")
        return 0

    def resume(self, arguments) -> int:
        if self._study.process:
            raise InputError(f"STUDY: '{self._study.study}' is running already ({self._study.process})")
        self._bring()
        return local_studies.resume(self._study, self._storage)

    def rm(self, arguments) -> int:
        name = _ended(self._study.study, self._study.state)
        if not confirm(f"remove study {name} in {self._storage} with its MLflow runs and models?", arguments.yes):
            return 130
        self._bring()
        print("\n".join(remove(self._study.folder, arguments.tracking_uri, self._store)))
        return 0

    def _all(self) -> dict[str, local_studies.LocalStudy]:
        """All studies, by name."""
        return local_studies.local_studies(self._storage)

    def _process(self) -> str:
        """Who runs the study now."""
        return local_studies.who_runs(self._study.folder)

    def _text(self) -> str:
        """The study's lines."""
        path = local_studies.log_of(self._study)
        return path.read_text(errors="replace") if path.exists() else ""

    def _bring(self) -> None:
        """Has the study's files be in its folder."""


class OfAStore(OfAFolder):
    """The studies of an object store, as it tells of them."""

    LOOKS_EVERY_S = 2.0  # as often as it is given what a study writes

    def __init__(self, storage: str):
        super().__init__(storage)
        self._store.check(write=False)

    def choose(self, study: str) -> None:
        """Which study is meant."""
        found = remote_studies.remote_study(self._store, study)
        if found is None:
            raise Missing(f"STUDY: {self._store} has no study '{study}'{self._store.known()}")
        self._study = found

    def _all(self) -> dict[str, local_studies.LocalStudy]:
        return remote_studies.remote_studies(self._store)

    def _process(self) -> str:
        return remote_studies.who_runs_there(self._store, self._study.study)

    def _text(self) -> str:
        return remote_studies.log_there(self._store, self._study.study)

    def _bring(self) -> None:
        self._store.bring(self._study.study, asked="STUDY")


def _known(studies: dict[str, Any], name: str, where: str) -> Any:
    """The study of a name.

    Raises:
        Missing: there is none.
    """
    if name in studies:
        return studies[name]
    near = difflib.get_close_matches(name, studies, n=3) or sorted(studies)[-3:]
    hint = f"; there are {', '.join(near)}" if near else ""
    raise Missing(f"STUDY: {where} has no study '{name}'{hint}")


def _going(study):
    """The study, which runs or waits.

    Raises:
        InputError: it does not.
    """
    if study.state not in GOING:
        raise InputError(f"STUDY: '{study.study}' is not running; it is {study.state}")
    return study


def _ended(name: str, state: str) -> str:
    """The name of a study that has ended.

    Raises:
        InputError: it is at work.
    """
    if state in GOING:
        raise InputError(f"STUDY: '{name}' is {state}; stop it first")
    return name
