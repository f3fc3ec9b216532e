"""Makes MLflow equal to a study's folder: one experiment a study, one parent run, one child run a trial.

Everything is written from the folder, with the times that are kept there, and MLflow takes a point that it has already
as the same point: so whatever may not have arrived is simply written again.
"""

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.ledger import COMPLETE, FAILED, PRUNED, RUNNING, TrialRecord, load_record
from search.tracking.credentials import shown
from search.tracking.curve import CURVE, draw_curve
from search.tracking.facts import best_first, finite, flat_params, split_tag
from search.tracking.parent import Parent, log_batch
from search.tracking.store import check_tracking, connect, store_exists
from search.tracking.study_run import RUNNING as OPEN
from search.tracking.study_run import StudyRun
from trainables.errors import InputError
from trainables.files import LOG

INTERRUPTED = "interrupted"
SIMULATED = "simulated"  # the tag that marks a simulated study's runs; such trials have no files
RUN_STATUS = {COMPLETE: "FINISHED", PRUNED: "KILLED", FAILED: "FAILED", INTERRUPTED: "KILLED"}
RECORDS = ("trials", "delivered")  # the folders of a study that hold trials' records
LONGEST_REASON = 2000  # characters; MLflow refuses tags of more than 8000
PAGE = 200  # runs a request; a server needs seconds for a thousand
EPOCHS = "epochs"  # the tag that says how many of a trial's are there


@dataclass(slots=True)
class _Run:
    """A trial's run as far as it is known to be on the server."""

    run_id: str
    started: int
    tags: dict[str, str]
    has_params: bool = False
    status: str = OPEN

    @property
    def epochs(self) -> int:
        """How many of the trial's epochs are there."""
        return int(self.tags[EPOCHS])


class Mirror:
    """One study's folder and its experiment.

    Args:
        uri: MLflow's tracking URI.
        folder: the study's. Where the store is a database, artifacts go into the folder `artifacts` beside it; a
            server has its own place.

    Every method but `open` may be called from several threads, for different trials. Whatever MLflow's client raises
    comes through: each store and driver has its own.
    """

    def __init__(self, uri: str, folder: Path):
        self.uri, self.folder = uri, Path(folder)
        self._marks: dict[str, str] = {}  # tags of every trial's run, besides those that tell what it is
        self.experiment_id: str | None = None
        self.parent_id: str | None = None
        self._client: Any = None
        self._runs: dict[str, _Run] = {}
        self._parent: Parent | None = None
        self._drawing = threading.Lock()
        self._logs: dict[Path, tuple[str, int]] = {}  # of trials: the run, and how long it was

    def reach(self) -> None:
        """Raises within seconds where the store does not answer; a new database is made ready by it.

        Raises:
            InputError: as `check_tracking`.
        """
        check_tracking(self.uri)
        self._client = self._client or connect(self.uri)

    def open(self) -> None:
        """Finds the experiment and its parent run, or makes them, and sees which trials are there already.

        Raises:
            InputError: the experiment's name is taken by something else, or it was deleted.
        """
        wanted = self._wanted()
        self._marks = {name: text for name, text in wanted.tags.items() if name == SIMULATED}
        client = self._client = self._client or connect(self.uri)
        experiment = client.get_experiment_by_name(wanted.study)
        if experiment is None:
            tags = {"study_id": wanted.study_id}
            place = None
            if not self.uri.startswith("http"):
                place = (self.folder.resolve().parent / "artifacts" / wanted.study).as_uri()
            self.experiment_id = client.create_experiment(wanted.study, artifact_location=place, tags=tags)
        else:
            self.experiment_id = experiment.experiment_id
            self._check_ours(experiment, wanted)
        parents = self._parents()
        for extra in parents[1:]:  # a request whose answer was lost was carried out after all
            client.delete_run(extra.info.run_id)
        tags = {"role": "study"}
        parent = parents[0] if parents else client.create_run(self.experiment_id, wanted.started, tags, wanted.study)
        self.parent_id = parent.info.run_id
        self._parent = Parent(client, self.experiment_id, experiment.tags if experiment else {}, parent, self.folder)
        self._runs = {}
        for trial_id, run in self._children():
            self._runs.setdefault(trial_id, run)
            if self._runs[trial_id] is not run:
                client.delete_run(run.run_id)

    def _check_ours(self, experiment, wanted: StudyRun) -> None:
        name = wanted.study
        if experiment.lifecycle_stage == "deleted":
            raise InputError(f"--name: MLflow's experiment {name!r} was deleted; restore it or take another name")
        if experiment.tags.get("study_id") == wanted.study_id:
            return
        if self._client.search_runs([self.experiment_id], max_results=1):  # else a study that was refused left it
            theirs = {run.data.tags.get("comparable") for run in self._parents()}
            if "study_id" in experiment.tags or not wanted.adopts or theirs != {wanted.tags.get("comparable")}:
                raise InputError(
                    f"--name: MLflow has an experiment {name!r} of another study; rename that one, or take another name"
                )
        self._client.set_experiment_tag(self.experiment_id, "study_id", wanted.study_id)

    def _parents(self) -> list:
        """The experiment's parent runs, the oldest first."""
        query, order = "tags.role = 'study'", ["start_time ASC"]
        return list(self._client.search_runs([self.experiment_id], query, order_by=order))

    def _children(self) -> Iterator[tuple[str, _Run]]:
        """The trials' runs, the oldest first."""
        query, token = f"tags.`mlflow.parentRunId` = '{self.parent_id}'", None
        while token != "":
            page = self._client.search_runs(
                [self.experiment_id], query, max_results=PAGE, order_by=["start_time ASC"], page_token=token
            )
            for run in page:
                info, tags = run.info, run.data.tags
                if "trial_id" in tags:
                    yield tags["trial_id"], _Run(info.run_id, info.start_time, tags, status=info.status)
            token = page.token or ""

    def places(self) -> list[str]:
        """The folders of all trials, within the study's, in the order they started."""
        found = [path for name in RECORDS for path in self.folder.glob(f"{name}/*/record.json")]
        started = {path: load_record(path).started for path in found}
        return [str(path.parent.relative_to(self.folder)) for path in sorted(found, key=started.get)]

    def trial(self, place: str, live: bool) -> bool:
        """Writes what MLflow lacks of one trial; returns whether there was anything.

        Args:
            place: its folder within the study's.
            live: whether it is being trained; one that is not and has not ended was interrupted.
        """
        path = self.folder / place / "record.json"
        if not path.exists():
            return False  # a study that was refused as it began has taken its folder away
        record = load_record(path)
        state = record.state if record.state != RUNNING or live else INTERRUPTED
        tags = {"state": state, EPOCHS: str(len(record.history))}
        if record.state != RUNNING:
            tags["reason"] = record.reason[:LONGEST_REASON]
        if record.role == "trial":
            tags |= split_tag("searched", json.dumps(record.params))  # for studies that start warm from this one
        if self._settled(record, state, tags):
            return False
        run = self._run_of(record, tags)
        if run.status != OPEN and live:
            self._client.update_run(run.run_id, status=OPEN)
            run.status = OPEN
        changed = dict(tags.items() - run.tags.items())
        metrics = self._points(record, run.epochs)
        if metrics or changed or not run.has_params:
            params = {} if run.has_params else flat_params(record.config)
            log_batch(self._client, run.run_id, metrics, params, changed)
            run.has_params, run.tags = True, run.tags | tags
        if state != RUNNING:
            if SIMULATED not in self._marks:
                self._trial_files(record, path.parent, run.run_id)
            ended = record.ended or (record.times[-1] if record.times else record.started)
            self._client.set_terminated(run.run_id, RUN_STATUS[state], int(ended * 1000))
            run.status = RUN_STATUS[state]
        return True

    def _settled(self, record: TrialRecord, state: str, tags: dict[str, str]) -> bool:
        """Whether all of a trial that is not live is there: its run's status is written last.

        An earlier version told no epochs; what it ended is whole.
        """
        run = self._runs.get(record.trial_id)
        if run is None or run.started != int(record.started * 1000) or state == RUNNING:
            return False
        same = run.status == RUN_STATUS[state] and run.tags.get("state") == state
        return same and run.tags.get(EPOCHS, tags[EPOCHS] if state != INTERRUPTED else None) == tags[EPOCHS]

    def _run_of(self, record: TrialRecord, tags: dict[str, str]) -> _Run:
        began = int(record.started * 1000)
        run = self._runs.get(record.trial_id)
        # What failed or was cut off, and was begun anew; or of an earlier version, whose points had other times.
        if run and (run.started != began or EPOCHS not in run.tags):
            self._client.delete_run(run.run_id)
            del self._runs[record.trial_id]
            run = None
        if run is None:
            tags = tags | {"mlflow.parentRunId": self.parent_id, "role": record.role, "trial_id": record.trial_id}
            tags |= self._marks | {EPOCHS: "0"}
            name = f"{record.role} {record.trial_id}"
            run_id = self._client.create_run(self.experiment_id, began, tags, name).info.run_id
            run = self._runs[record.trial_id] = _Run(run_id, began, tags)
        return run

    @staticmethod
    def _points(record: TrialRecord, known: int) -> list[tuple[str, float, int, int]]:
        """The metrics of the epochs after the first `known`, each with the time that its record has."""
        return [
            (key, value, int(when * 1000), int(entry["epoch"]))
            for entry, when in zip(record.history[known:], record.times[known:], strict=True)
            for key, value in best_first(finite(entry)).items()
            if key != "epoch"
        ]

    def _trial_files(self, record: TrialRecord, folder: Path, run_id: str) -> None:
        """The trial's learning curves as a picture, and its log."""
        with self._drawing:
            drawn = draw_curve(record, folder / CURVE)
        if drawn:
            self._client.log_artifact(run_id, str(folder / CURVE))
        log = folder / LOG
        if log.exists():
            self._logs[log] = run_id, log.stat().st_size
            self._client.log_artifact(run_id, str(log))

    def study(self) -> str | None:
        """Writes what MLflow lacks of the parent run, but for its end; what it refuses holds nothing else up.

        Returns:
            Why the best student is no model there, where that is so.
        """
        errors, told = [], None
        for write in self._parent.steps(self._wanted()):
            try:
                told = write() or told
            except Exception as error:
                errors.append(error)
                self.reach()
        if errors:
            raise errors[0]
        return told

    def attach(self, paths: Iterable[Path]) -> None:
        """Puts files into the parent run of a study that may be running.

        Raises:
            InputError: the store has no such study, or one of the same name that is another.
        """
        wanted = self._wanted()
        check_tracking(self.uri)
        client = self._client = connect(self.uri) if store_exists(self.uri) else None  # looking makes nothing
        experiment = client and client.get_experiment_by_name(wanted.study)
        if experiment is None or experiment.tags.get("study_id") != wanted.study_id:
            raise InputError(f"{shown(self.uri)} does not have this study; name its store with --tracking-uri")
        self.experiment_id = experiment.experiment_id
        for path in paths:
            self._client.log_artifact(self._parents()[0].info.run_id, str(path))

    def end(self) -> None:
        """Gives the parent run its status, when everything else is there."""
        for log, (run_id, size) in self._logs.items():
            # A worker's last words may come after its trial has been stopped.
            if log.exists() and log.stat().st_size != size:
                self._client.log_artifact(run_id, str(log))
        self._parent.end(self._wanted())

    def _wanted(self) -> StudyRun:
        wanted = StudyRun.read(self.folder)
        if wanted is None:
            raise InputError(f"--study: {self.folder} says nothing for MLflow; run the study first")
        return wanted
