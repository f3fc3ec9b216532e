"""Optuna's side of a study: its journal, and the truth about every trial told to it."""

import json
import math
import os
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from optuna.trial import TrialState

from search.ledger import COMPLETE, FAILED, PRUNED, RUNNING, Ledger, TrialRecord
from search.objective import Objective
from search.resume import JOURNAL
from search.samplers import make_sampler

STATES = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}


class _Journal(JournalFileBackend):
    """Optuna's journal, forced onto the disk once a trial is asked for and once it is told of.

    Optuna forces every line there, some twenty a trial. What a power cut may take is the lines since then; a process
    that dies loses none, as they are with the kernel already.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with get_lock_file(self._lock), open(self._file_path, "ab") as file:
            file.write(lines.encode())

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        with open(self._file_path, "rb") as file:
            os.fsync(file.fileno())


def sync(study: optuna.Study) -> None:
    """Waits until all that a study knows is on the disk; nothing where it keeps no journal of ours."""
    backend = getattr(getattr(study, "_storage", None), "_backend", None)
    if isinstance(backend, _Journal):
        backend.sync()


def open_study(folder: Path, name: str, sampler: str, seed: int, objectives: list[Objective]) -> optuna.Study:
    """The Optuna study of a folder (`optuna.log`, a journal that optuna-dashboard opens), new or as it was left."""
    study = optuna.create_study(
        study_name=name,
        storage=JournalStorage(_Journal(str(folder / JOURNAL))),
        directions=[objective.direction for objective in objectives],
        load_if_exists=True,
    )
    study.set_metric_names([objective.metric for objective in objectives])
    # A sampler that goes on must not draw again what it drew first.
    study.sampler = make_sampler(sampler, (seed + 7919 * len(study.get_trials(deepcopy=False))) % 2**32)
    return study


def tell(study: optuna.Study, record: TrialRecord) -> None:
    """Tells Optuna how a trial ended, with its first objective at every epoch (where it is the only one)."""
    stored = study.get_trials(deepcopy=False)[record.number]
    trial = optuna.trial.Trial(study, stored._trial_id)
    if len(record.objectives) == 1:  # Optuna takes no intermediate values of several
        for entry in record.history:
            if math.isfinite(value := entry[record.objective]):
                trial.report(value, step=int(entry["epoch"]))
    trial.set_user_attr("state", record.state)
    if record.reason:
        trial.set_user_attr("reason", record.reason)
    # With PRUNED, Optuna takes the last intermediate value itself.
    study.tell(trial, record.values if record.state == COMPLETE else None, state=STATES[record.state])
    sync(study)


def reconcile(study: optuna.Study, ledger: Ledger) -> None:
    """After an interruption: tells Optuna what only the ledger knows, and ends what only Optuna knows."""
    records = {record.number: record for record in ledger.of_role("trial")}
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        record = records.get(trial.number)
        if record is None:
            study.tell(trial.number, state=TrialState.FAIL)
        elif record.state != RUNNING:
            tell(study, record)
