"""MLflow: one experiment a study, one parent run, one child run a trial.

One thread writes, several pending items of a trial in one request; where the server stays away, the items go to a
file and training goes on. Whatever a later item of the same trial finds missing on the server is written then, so
that a short outage leaves no hole.
"""

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search.ledger import COMPLETE, FAILED, PRUNED, RUNNING, TrialRecord
from search.tracking.store import (
    as_text,
    connect,
    finite,
    first_line,
    flat_params,
    shown,
    split_tag,
    unreachable,
)
from trainables.errors import InputError

INTERRUPTED = "interrupted"
RUN_STATUS = {COMPLETE: "FINISHED", PRUNED: "KILLED", FAILED: "FAILED"}
TOGETHER_S = 1.0  # items that come within it are written together: each request costs more than what is in it
PAUSES_S = (0.5, 2.0)  # between the three tries of an item
GRACE_S = 3.0  # for the item in hand when closing runs out of time
EVERY_EPOCH = "train/loss"  # by it is seen which epochs the server has
LONGEST_REASON = 2000  # characters; MLflow refuses tags of more than 8000


@dataclass(slots=True)
class _Item:
    kind: str
    record: TrialRecord | None = None
    content: dict[str, Any] = field(default_factory=dict)
    time: int = field(default_factory=lambda: int(time.time() * 1000))

    @property
    def target(self) -> str | None:
        return self.record.trial_id if self.record else None


@dataclass(slots=True)
class _Run:
    run_id: str
    steps: set[int] = field(default_factory=set)  # the epochs that the server has
    has_params: bool = False
    tags: dict[str, str] = field(default_factory=dict)  # those that the server has


class Writer:
    """Writes one study to MLflow, from a thread of its own; a study has it in a process of its own, see `Tracker`.

    Args:
        uri: MLflow's tracking URI.
        artifact_root: folder or URI for the artifacts of a study without a server; a server has its own.
        study: the experiment's and the parent run's name.
        spool: file that takes one JSON line for each item that could not be written.
        on_run_id: told, in the writing thread, when a record got its `run_id`.
        on_warning: told once, in the writing thread, when items begin to be lost.
        trial_tags: of every trial's run, besides those that tell what it is.
    """

    def __init__(
        self,
        uri: str,
        artifact_root: str | None,
        study: str,
        *,
        spool: Path,
        on_run_id: Callable[[TrialRecord], None] = lambda record: None,
        on_warning: Callable[[str], None] = lambda text: None,
        trial_tags: dict[str, str] | None = None,
    ):
        self.uri, self.artifact_root, self.study, self.spool = uri, artifact_root, study, Path(spool)
        self.experiment_id: str | None = None
        self.parent_id: str | None = None
        self.lost = 0
        self._on_run_id, self._on_warning = on_run_id, on_warning
        self._trial_tags = trial_tags or {}
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._runs: dict[str, _Run] = {}
        self._doubtful: set[str] = set()  # trials of which a write failed: the server may have it or not
        self._resumed = False
        self._left_open: dict[str, str] = {}  # runs of an earlier session that was killed, by trial
        self._down = False  # the last item was lost: the next ones get a single try
        self._deadline = math.inf
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def open_study(self, tags: dict, params: dict, artifacts: dict[str, Path | str], resume: bool) -> None:
        """Creates the experiment and its parent run, or finds them again, and begins to write.

        Args:
            tags: the parent run's tags.
            params: its params; on resume a changed one becomes the tag `resumed/NAME`, as MLflow's params are final.
            artifacts: text files by name, each given as a path or as its text.
            resume: whether the experiment may exist already.

        Raises:
            InputError: the name is taken, or the store refuses.
        """
        try:
            self._open(tags, {name: as_text(value) for name, value in params.items()}, artifacts, resume)
        except InputError:
            raise
        except Exception as error:  # each store and driver has its own
            raise InputError(unreachable(self.uri, first_line(error))) from error
        self._thread.start()

    def warm_up(self) -> None:
        """A new database's first use takes seconds, which pass while other things come up; writes nothing of ours."""
        try:
            connect(self.uri).search_experiments(max_results=1)
        except Exception:
            return  # opening the study meets it again, and tells

    def _open(self, tags: dict, params: dict[str, str], artifacts: dict[str, Path | str], resume: bool) -> None:
        client = self._mlflow = connect(self.uri)
        experiment = client.get_experiment_by_name(self.study)
        parent = None
        if experiment is None:
            self.experiment_id = client.create_experiment(self.study, artifact_location=self._artifact_location())
        elif experiment.lifecycle_stage == "deleted":
            raise InputError(f"--name: MLflow's experiment {self.study!r} was deleted; restore it or take another name")
        elif not resume:
            raise InputError(f"--name: MLflow has an experiment {self.study!r}; take another name or add --resume")
        else:
            self.experiment_id = experiment.experiment_id
            parent = next(iter(client.search_runs([self.experiment_id], "tags.role = 'study'", max_results=1)), None)
        if parent is None:
            parent = client.create_run(self.experiment_id, tags={"role": "study"}, run_name=self.study)
        else:
            self._resumed = True
            client.update_run(parent.info.run_id, status="RUNNING")
        self.parent_id = parent.info.run_id
        logged = parent.data.params
        changed = {f"resumed/{name}": value for name, value in params.items() if logged.get(name, value) != value}
        fresh = {name: value for name, value in params.items() if name not in logged}
        self._log(self.parent_id, params=fresh, tags=tags | changed)
        for name, content in artifacts.items():
            client.log_text(self.parent_id, content.read_text() if isinstance(content, Path) else content, name)

    def _artifact_location(self) -> str | None:
        if self.artifact_root is None or self.uri.startswith("http"):
            return None
        if "://" in self.artifact_root:
            return f"{self.artifact_root.rstrip('/')}/{self.study}"
        return (Path(self.artifact_root).resolve() / self.study).as_uri()

    def trial_started(self, record: TrialRecord) -> None:
        self._queue.put(_Item("started", record))

    def trial_epoch(self, record: TrialRecord, metrics: dict[str, float]) -> None:
        self._queue.put(_Item("epoch", record, metrics))

    def trial_ended(self, record: TrialRecord) -> None:
        """Also for a trial of an earlier session: whatever MLflow lacks of it is then written."""
        self._queue.put(_Item("ended", record))

    def catch_up(self, records: Iterable[TrialRecord]) -> None:
        """After an earlier session died: writes the ends that it knew of and that MLflow was not told yet.

        Raises:
            InputError: the store refuses.
        """
        if not self._resumed:
            return
        try:
            told = self._ended_runs()
        except Exception as error:  # each store and driver has its own
            raise InputError(unreachable(self.uri, first_line(error))) from error
        for record in records:
            if record.state != RUNNING and told.get(record.trial_id) != record.state:
                self.trial_ended(record)

    def _ended_runs(self) -> dict[str, str | None]:
        """The states by trial of the runs that have ended; notes the others as left open."""
        query, token, told = f"tags.`mlflow.parentRunId` = '{self.parent_id}'", None, {}
        while token != "":
            page = self._mlflow.search_runs([self.experiment_id], query, max_results=1000, page_token=token)
            ended = [run for run in page if run.info.status != "RUNNING"]
            self._left_open |= {run.data.tags["trial_id"]: run.info.run_id for run in page if run not in ended}
            told |= {run.data.tags["trial_id"]: run.data.tags.get("state") for run in ended}
            token = page.token or ""
        return told

    def study_metric(self, key: str, value: float, step: int) -> None:
        self._queue.put(_Item("metric", content={"key": key, "value": value, "step": step}))

    def study_artifact(self, path: Path) -> None:
        self._queue.put(_Item("artifact", content={"path": str(path)}))

    def study_tags(self, tags: dict[str, Any]) -> None:
        self._queue.put(_Item("tags", content=tags))

    def close(self, status: str = "FINISHED", timeout: float = 30.0) -> None:
        """Writes what is pending and ends the parent run; trials still open can be continued by a resumed study.

        Args:
            status: FINISHED, FAILED or KILLED.
            timeout: seconds after which the rest goes to the spool.
        """
        if not self._thread.is_alive():
            return
        self._deadline = time.monotonic() + timeout
        self._queue.put(_Item("close", content={"status": status}))
        self._thread.join(timeout + GRACE_S)

    def _work(self) -> None:
        closing = None
        while closing is None:
            pending: dict[str | None, list[_Item]] = {}
            for item in self._together():
                if item.kind == "close":
                    closing = item
                else:
                    pending.setdefault(item.target, []).append(item)
            for target, items in pending.items():
                self._try(self._write_study if target is None else self._write_trial, items)
        self._try(self._write_close, [closing])

    def _together(self) -> Iterator[_Item]:
        """Waits for an item and gives it with those that come soon after; closing waits for no more."""
        item = self._queue.get()
        until = time.monotonic() + TOGETHER_S
        yield item
        while item.kind != "close":
            try:
                item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            yield item

    def _try(self, write: Callable[[list[_Item]], None], items: list[_Item]) -> None:
        error: Exception | str = "no time left"
        for pause in (0.0,) if self._down else (0.0, *PAUSES_S):
            if time.monotonic() + pause > self._deadline:
                break
            time.sleep(pause)
            try:
                write(items)
            except Exception as reason:  # whatever it is, training must go on without MLflow
                error = reason
                if items[0].target:
                    self._doubtful.add(items[0].target)
            else:
                self._down = False
                return
        self._spool(items, first_line(error))

    def _spool(self, items: list[_Item], error: str) -> None:
        self._down = True
        self.spool.parent.mkdir(parents=True, exist_ok=True)
        with self.spool.open("a") as file:
            for item in items:
                line = {"time": item.time, "kind": item.kind, "trial_id": item.target, **item.content, "error": error}
                if item.kind == "ended":
                    line |= {"state": item.record.state, "reason": item.record.reason}
                file.write(json.dumps(finite(line), default=str) + "\n")
        if not self.lost:
            self._on_warning(
                f"tracking: {shown(self.uri)} fails ({error}); training goes on, what is lost is in {self.spool}"
            )
        self.lost += len(items)

    def _write_trial(self, items: list[_Item]) -> None:
        record = items[-1].record
        ended = any(item.kind == "ended" for item in items)
        tags = {"state": record.state, "reason": record.reason[:LONGEST_REASON]} if ended else {"state": RUNNING}
        if record.role == "trial":
            tags |= split_tag("searched", json.dumps(record.params))  # for studies that start warm from this one
        run = self._runs.get(record.trial_id)
        if run is None or record.trial_id in self._doubtful:
            run = self._open_run(record, tags)
        times = {item.content["epoch"]: item.time for item in items if item.kind == "epoch"}
        entries = record.history + [item.content for item in items if item.kind == "epoch"]
        epochs = {int(entry["epoch"]): entry for entry in entries}
        steps = [step for step in sorted(epochs) if step not in run.steps]
        metrics = [
            (key, value, times.get(step, items[-1].time), step)
            for step in steps
            for key, value in finite(epochs[step]).items()
            if key != "epoch"
        ]
        params = {} if run.has_params else flat_params(record.config)
        end_time = int((record.ended or time.time()) * 1000)
        self._log(run.run_id, metrics, params, dict(tags.items() - run.tags.items()))
        run.has_params, run.tags = True, run.tags | tags
        run.steps.update(steps)
        if ended:
            self._mlflow.set_terminated(run.run_id, RUN_STATUS[record.state], end_time)
            del self._runs[record.trial_id]

    def _open_run(self, record: TrialRecord, tags: dict[str, str]) -> _Run:
        """The trial's run under this parent; looked up only where an earlier session or try may have created it."""
        client, known = self._mlflow, []
        if record.run_id or self._resumed or record.trial_id in self._doubtful:
            query = f"tags.`mlflow.parentRunId` = '{self.parent_id}' and tags.trial_id = '{record.trial_id}'"
            known = client.search_runs([self.experiment_id], query, max_results=1)
        began = int(record.started * 1000)
        if known and known[0].info.start_time != began:  # what failed or was cut off, and is begun anew
            client.delete_run(known[0].info.run_id)
            known = []
        if known:
            run = _Run(known[0].info.run_id, tags=known[0].data.tags)
            run.steps = {metric.step for metric in client.get_metric_history(run.run_id, EVERY_EPOCH)}
            client.update_run(run.run_id, status="RUNNING")
        else:
            tags = tags | {"mlflow.parentRunId": self.parent_id, "role": record.role, "trial_id": record.trial_id}
            tags |= self._trial_tags
            name = f"{record.role} {record.trial_id}"
            run = _Run(client.create_run(self.experiment_id, began, tags, name).info.run_id, tags=tags)
        self._left_open.pop(record.trial_id, None)
        self._runs[record.trial_id] = run
        self._doubtful.discard(record.trial_id)
        if record.run_id != run.run_id:
            record.run_id = run.run_id
            self._on_run_id(record)
        return run

    def _write_study(self, items: list[_Item]) -> None:
        numbers = [(item.content, item.time) for item in items if item.kind == "metric"]
        metrics = [(entry["key"], entry["value"], when, entry["step"]) for entry, when in numbers]
        tags = {key: value for item in items if item.kind == "tags" for key, value in item.content.items()}
        self._log(self.parent_id, [entry for entry in metrics if math.isfinite(entry[1])], tags=tags)
        for item in items:
            if item.kind == "artifact":
                self._mlflow.log_artifact(self.parent_id, item.content["path"])

    def _write_close(self, items: list[_Item]) -> None:
        for run_id in [*(run.run_id for run in self._runs.values()), *self._left_open.values()]:
            self._mlflow.set_tag(run_id, "state", INTERRUPTED)
            self._mlflow.set_terminated(run_id, "KILLED")
        self._mlflow.set_terminated(self.parent_id, items[0].content["status"])

    def _log(self, run_id: str, metrics=(), params: dict | None = None, tags: dict | None = None) -> None:
        from mlflow.entities import Metric, Param, RunTag

        self._mlflow.log_batch(
            run_id,
            [Metric(*entry) for entry in metrics],
            [Param(key, as_text(value)) for key, value in (params or {}).items()],
            [RunTag(key, as_text(value)) for key, value in (tags or {}).items()],
        )
