"""The study's own record of its trials: one small JSON file a trial, written before anybody else is told.

Optuna, MLflow and `trials.csv` are filled from these records, so that the four never disagree on a state, and a
study that was interrupted knows what it had.
"""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from search.objective import TOP1
from trainables.files import RECORD

RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"
STOPPED_EARLY = "stopped early by the scheduler"  # how the reason of such a trial begins


@dataclass
class TrialRecord:
    """One trial; `history` has one dict of metrics an epoch (key `epoch`, from 1)."""

    trial_id: str  # "7"; a baseline's name, "kd", of its own search "kd-3"; a finalist's "7-seed1"
    role: str  # trial, baseline, finalist or delivery
    config: dict[str, Any]  # the whole TrialConfig, flat
    params: dict[str, Any]  # what was searched, by Optuna's names
    objectives: dict[str, bool] = field(default_factory=lambda: {TOP1: True})  # metric: whether more is better
    number: int | None = None  # Optuna's, of a trial
    of: str = ""  # the record whose configuration a finalist has; the baseline whose search a baseline belongs to
    state: str = RUNNING
    reason: str = ""
    started: float = field(default_factory=time.time)
    ended: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # when each of them was reported, seconds since 1970

    @property
    def epoch(self) -> int:
        """The last epoch reported, 0 before the first."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def objective(self) -> str:
        """The metric that ranks trials."""
        return next(iter(self.objectives))

    @property
    def value(self) -> float | None:
        """The first objective at the last epoch reported."""
        return self.history[-1].get(self.objective) if self.history else None

    @property
    def values(self) -> list[float | None]:
        """All objectives."""
        return [self.metric(name) for name in self.objectives]

    @property
    def score(self) -> float | None:
        """The first objective, turned so that larger is better."""
        return None if self.value is None else self._sign * self.value

    @property
    def scores(self) -> list[float]:
        """All objectives, turned so that larger is better; one that is missing is the worst."""
        turned = zip(self.values, self.objectives.values(), strict=True)
        return [-math.inf if value is None else value if maximize else -value for value, maximize in turned]

    def metric(self, name: str) -> float | None:
        """A metric's latest value; some are reported at one epoch only."""
        return next((entry[name] for entry in reversed(self.history) if name in entry), None)

    @property
    def seconds(self) -> float:
        """What its epochs took, pauses of the study left out."""
        return sum(entry.get("time/epoch_s", 0.0) for entry in self.history)

    @property
    def best(self) -> float | None:
        """The first objective's best over the epochs."""
        known = [entry[self.objective] for entry in self.history if self.objective in entry]
        return max(known, key=lambda value: self._sign * value, default=None)

    @property
    def _sign(self) -> int:
        return 1 if self.objectives[self.objective] else -1

    @property
    def whole(self) -> bool:
        """Whether all its epochs were reported."""
        return self.epoch >= self.config["epochs"]

    @property
    def cut_off(self) -> bool:
        """See `cut_off`."""
        return cut_off(self.state, self.reason)

    def add(self, metrics: dict[str, float]) -> bool:
        """Appends an epoch's metrics; False where that epoch is known already (a restarted worker repeats itself)."""
        if int(metrics["epoch"]) <= self.epoch:
            return False
        self.history.append(_shared(metrics))
        self.times.append(time.time())
        return True

    def finish(self, error: str | None = None, stopped: str | None = None) -> None:
        """Decides the final state from what was reported: the one place where states are decided.

        Args:
            error: why the trial failed, None where it ended by itself or was stopped.
            stopped: what cut it off before its last epoch; None is the scheduler.
        """
        self.ended = time.time()
        if error is not None:
            self.state, self.reason = FAILED, error
        elif self.value is None and stopped:
            self.state, self.reason = PRUNED, f"{stopped} before its first epoch's end"
        elif self.value is None:
            self.state, self.reason = FAILED, "it reported no epoch"
        elif not math.isfinite(self.value):
            self.state, self.reason = FAILED, f"{self.objective} was not finite"
        elif self.epoch < self.config["epochs"]:
            self.state, self.reason = PRUNED, f"{stopped or STOPPED_EARLY} at epoch {self.epoch}"
        elif missing := [name for name, value in zip(self.objectives, self.values, strict=True) if value is None]:
            self.state, self.reason = FAILED, f"{missing[0]} was not reported"
        elif wrong := [name for name in self.objectives if not math.isfinite(self.metric(name))]:
            self.state, self.reason = FAILED, f"{wrong[0]} was not finite"
        else:
            self.state, self.reason = COMPLETE, ""


def cut_off(state: str, reason: str) -> bool:
    """Whether a budget ended a trial: it was not found to be worse than others."""
    return state == PRUNED and not reason.startswith(STOPPED_EARLY)


def _shared(entry: dict[str, Any]) -> dict[str, Any]:
    """The same dict with names that all records share: each that is read or sent brings its own, several kB a trial."""
    return {sys.intern(name): value for name, value in entry.items()}


def load_record(path: Path) -> TrialRecord:
    """The record of a file; one of an earlier version has no times, and gets those that its epochs took."""
    content = json.loads(path.read_text())
    record = TrialRecord(**{one.name: content[one.name] for one in fields(TrialRecord) if one.name in content})
    record.config, record.history = _shared(record.config), [_shared(entry) for entry in record.history]
    while len(record.times) < len(record.history):
        took = record.history[len(record.times)].get("time/epoch_s", 0.0)
        record.times.append((record.times[-1] if record.times else record.started) + took)
    return record


class Ledger:
    """The records of one study, in memory and under `folder`."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._watchers: list[Callable[[TrialRecord], None]] = []
        records = [load_record(path) for path in self.folder.glob(f"*/{RECORD}")]
        self.records = {record.trial_id: record for record in sorted(records, key=lambda record: record.started)}

    def trial_folder(self, trial_id: str) -> Path:
        """Where a trial keeps its record, checkpoint and weights."""
        return self.folder / trial_id

    def save(self, record: TrialRecord) -> None:
        """Writes one record whole or not at all."""
        with self._lock:
            self.records[record.trial_id] = record
            path = self.trial_folder(record.trial_id) / RECORD
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(vars(record)))  # all its fields
            os.replace(partial, path)
        for watcher in self._watchers:
            watcher(record)

    def settle(self) -> None:
        """Ends the records of an earlier session that had reported all their epochs: nothing of them is left to run."""
        for record in list(self.records.values()):
            if record.state == RUNNING and record.whole:
                record.finish()
                record.ended = (self.trial_folder(record.trial_id) / RECORD).stat().st_mtime
                self.save(record)

    def watch(self, watcher: Callable[[TrialRecord], None]) -> None:
        """Has a function told every record that is saved from now on, in the thread that saves it."""
        self._watchers.append(watcher)

    @property
    def objectives(self) -> list[str]:
        """The study's metrics; the first ranks its trials."""
        return next((list(record.objectives) for record in self.records.values()), [TOP1])

    @property
    def objective(self) -> str:
        """The metric that ranks the study's trials."""
        return self.objectives[0]

    def of_role(self, role: str) -> list[TrialRecord]:
        return [record for record in self.records.values() if record.role == role]

    def complete(self) -> list[TrialRecord]:
        """The trials that ran to their end; baselines do not count."""
        return [record for record in self.of_role("trial") if record.state == COMPLETE]

    def best(self) -> TrialRecord | None:
        """The complete trial with the best first objective at its last epoch; of equals the better by the others."""
        return max(self.complete(), key=lambda record: record.scores, default=None)

    def front(self) -> list[TrialRecord]:
        """With several objectives, the complete trials that no other one beats in one objective without losing in
        another (the Pareto front), best first; [] where there is one objective."""
        known = [record for record in self.complete() if len(record.objectives) > 1 and None not in record.values]

        def beaten(mine: list[float]) -> bool:
            return any(
                other.scores != mine and all(theirs >= own for theirs, own in zip(other.scores, mine, strict=True))
                for other in known
            )

        return sorted((one for one in known if not beaten(one.scores)), key=lambda one: one.scores, reverse=True)
