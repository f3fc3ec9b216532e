"""Makes MLflow equal to a study's folder: one experiment a study, one parent run, one child run a trial.

Everything is written from the folder, with the times that are kept there, and MLflow takes a point that it has already
as the same point: so whatever may not have arrived is simply written again.
"""

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search.ledger import COMPLETE, FAILED, PRUNED, RUNNING, TrialRecord, load_record
from search.tracking.best_model import log_best_model
from search.tracking.curve import CURVE, draw_curve
from search.tracking.dataset import dataset_inputs
from search.tracking.page import HERE
from search.tracking.store import as_text, best_first, connect, finite, flat_params, split_tag
from search.tracking.study_run import RUNNING as OPEN
from search.tracking.study_run import StudyRun
from trainables.errors import InputError
from trainables.files import LOG

INTERRUPTED = "interrupted"
SIMULATED = "simulated"  # the tag that marks a simulated study's runs; such trials have no files
RUN_STATUS = {COMPLETE: "FINISHED", PRUNED: "KILLED", FAILED: "FAILED", INTERRUPTED: "KILLED"}
RECORDS = ("trials", "delivered")  # the folders of a study that hold trials' records
LONGEST_REASON = 2000  # characters; MLflow refuses tags of more than 8000
MOST_METRICS = 800  # a request; MLflow takes 1000 metrics, params and tags together
PAGE = 1000  # runs a request


@dataclass(slots=True)
class _Run:
    """A trial's run as far as it is known to be on the server."""

    run_id: str
    started: int
    epochs: int = 0
    has_params: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    status: str = OPEN


@dataclass(slots=True)
class _Written:
    """What of the parent run is known to be on the server."""

    experiment: dict[str, str] = field(default_factory=dict)  # the experiment's tags
    params: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, int] = field(default_factory=dict)
    dataset: bool = False
    best_model: int = 0
    status: str = OPEN


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
        self._written = _Written()
        self._drawing = threading.Lock()
        self._logs: dict[Path, tuple[str, int]] = {}  # of trials: the run, and how long it was

    def reach(self) -> None:
        """Raises where the store does not answer; a new database is made ready by it, which takes seconds."""
        self._client = self._client or connect(self.uri)
        self._client.search_experiments(max_results=1)

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
        parents = list(client.search_runs([self.experiment_id], "tags.role = 'study'", order_by=["start_time ASC"]))
        for extra in parents[1:]:  # a request whose answer was lost was carried out after all
            client.delete_run(extra.info.run_id)
        tags = {"role": "study"}
        parent = parents[0] if parents else client.create_run(self.experiment_id, wanted.started, tags, wanted.study)
        self.parent_id = parent.info.run_id
        known = dict(experiment.tags) if experiment else {}
        self._written = _Written(known, set(parent.data.params), dict(parent.data.tags), status=parent.info.status)
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
        if "study_id" in experiment.tags or not wanted.adopts:
            raise InputError(
                f"--name: MLflow has an experiment {name!r} of another study; rename that one, or take another name"
            )
        self._client.set_experiment_tag(self.experiment_id, "study_id", wanted.study_id)

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
                    yield tags["trial_id"], _Run(info.run_id, info.start_time, tags=tags, status=info.status)
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
        tags = {"state": state}
        if record.state != RUNNING:
            tags["reason"] = record.reason[:LONGEST_REASON]
        if record.role == "trial":
            tags |= split_tag("searched", json.dumps(record.params))  # for studies that start warm from this one
        run = self._run_of(record, tags)
        if record.state != RUNNING and self._settled(run, state):
            return False
        if run.status != OPEN and live:
            self._client.update_run(run.run_id, status=OPEN)
            run.status = OPEN
        changed = dict(tags.items() - run.tags.items())
        metrics, epochs = self._points(record, run.epochs), len(record.history)
        if metrics or changed or not run.has_params:
            params = {} if run.has_params else flat_params(record.config)
            self._log(run.run_id, metrics, params, changed)
            run.has_params, run.epochs, run.tags = True, epochs, run.tags | tags
        if state != RUNNING:
            if record.state != RUNNING and SIMULATED not in self._marks:
                self._trial_files(record, path.parent, run.run_id)
            ended = record.ended or (record.times[-1] if record.times else record.started)
            self._client.set_terminated(run.run_id, RUN_STATUS[state], int(ended * 1000))
            run.status = RUN_STATUS[state]
        return True

    def _settled(self, run: _Run, state: str) -> bool:
        """Whether all of an ended trial is there: its status is written last."""
        return run.status == RUN_STATUS[state] and run.tags.get("state") == state

    def _run_of(self, record: TrialRecord, tags: dict[str, str]) -> _Run:
        began = int(record.started * 1000)
        run = self._runs.get(record.trial_id)
        if run and run.started != began:  # what failed or was cut off, and was begun anew
            self._client.delete_run(run.run_id)
            del self._runs[record.trial_id]
            run = None
        if run is None:
            tags = tags | {"mlflow.parentRunId": self.parent_id, "role": record.role, "trial_id": record.trial_id}
            tags |= self._marks
            name = f"{record.role} {record.trial_id}"
            run_id = self._client.create_run(self.experiment_id, began, tags, name).info.run_id
            run = self._runs[record.trial_id] = _Run(run_id, began, tags=tags)
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

    def study(self) -> None:
        """Writes what MLflow lacks of the parent run, but for its end."""
        wanted, there = self._wanted(), self._written
        for name, text in wanted.experiment.items():
            value = text.replace(HERE, self.experiment_id)
            if there.experiment.get(name) != value:
                self._client.set_experiment_tag(self.experiment_id, name, value)
                there.experiment[name] = value
        if there.status != OPEN and wanted.status == OPEN:
            self._client.update_run(self.parent_id, status=OPEN)
            there.status = OPEN
        params = {name: value for name, value in wanted.params.items() if name not in there.params}
        tags = {name: value for name, value in wanted.tags.items() if there.tags.get(name) != value}
        metrics = [tuple(entry) for entry in wanted.metrics[there.metrics :]]
        if params or tags or metrics:
            self._log(self.parent_id, metrics, params, tags)
            there.params |= set(params)
            there.tags |= tags
            there.metrics = len(wanted.metrics)
        if not there.dataset and (inputs := dataset_inputs(wanted.dataset)):
            self._client.log_inputs(self.parent_id, inputs)
            there.dataset = True
        for name, text in wanted.texts.items():
            if there.texts.get(name) != text:
                self._client.log_text(self.parent_id, text, name)
                there.texts[name] = text
        for name, when in wanted.artifacts.items():
            if there.artifacts.get(name) != when and (self.folder / name).exists():
                self._client.log_artifact(self.parent_id, str(self.folder / name))
                there.artifacts[name] = when
        if there.best_model != wanted.best_model:
            classes = wanted.dataset.get("classes", [])
            problem = log_best_model(self._client, self.parent_id, wanted.study, self.folder, classes)
            if problem:
                self._client.set_tag(self.parent_id, "best_model", problem)
            there.best_model = wanted.best_model

    def end(self) -> None:
        """Gives the parent run its status, when everything else is there."""
        for log, (run_id, size) in self._logs.items():
            if log.stat().st_size != size:  # a worker's last words came after its trial had been stopped
                self._client.log_artifact(run_id, str(log))
        wanted = self._wanted()
        if wanted.status not in (OPEN, self._written.status):
            self._client.set_terminated(self.parent_id, wanted.status, wanted.ended)
            self._written.status = wanted.status

    def _wanted(self) -> StudyRun:
        wanted = StudyRun.read(self.folder)
        if wanted is None:
            raise InputError(f"--study: {self.folder} says nothing for MLflow; run the study first")
        return wanted

    def _log(self, run_id: str, metrics: list[tuple], params: dict[str, Any], tags: dict[str, Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        entities = [Metric(*entry) for entry in metrics]
        for at in range(0, math.ceil(len(entities) / MOST_METRICS) - 1):
            self._client.log_batch(run_id, entities[at * MOST_METRICS : (at + 1) * MOST_METRICS])
        rest = entities[max(0, math.ceil(len(entities) / MOST_METRICS) - 1) * MOST_METRICS :]
        self._client.log_batch(
            run_id,
            rest,
            [Param(key, as_text(value)) for key, value in params.items()],
            [RunTag(key, as_text(value)) for key, value in tags.items()],
        )
