"""Optuna's side of a study: its journal, and the truth about every trial told to it."""

import math
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from search.journal_file import Journal, sync
from search.ledger import COMPLETE, FAILED, PRUNED, RUNNING, Ledger, TrialRecord
from search.objective import Objective
from search.samplers import PARTIAL, make_sampler
from search.storage import JOURNAL

STATES = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}
FROM = "from"  # user attribute of another study's trial: STUDY/TRIAL
WARM = "warm_start"  # user attribute of the study: the first guesses that earlier studies gave when it began


def open_study(
    folder: Path,
    name: str,
    sampler: str,
    seed: int,
    objectives: list[Objective],
    first_guesses: Iterable[dict[str, Any]] = (),
    priors: Iterable[FrozenTrial] = (),
    *,
    trials: int | None = None,
    warm: Iterable[dict[str, Any]] = (),
) -> optuna.Study:
    """The Optuna study of a folder (`optuna.log`, a journal that optuna-dashboard opens), new or as it was left.

    Args:
        folder: the study's.
        name: the study's.
        sampler: by our name; with the seed it decides what is drawn for which trial, in whichever session.
        seed: of the sampler.
        objectives: what the study looks for.
        first_guesses: parameters that are tried before any is drawn, but for those that a trial has had.
        priors: other studies' trials that a new study's sampler learns from; they come before its own trials.
        trials: how many there are to be; of the first guesses no more are taken than there is room for. None: all.
        warm: those of a new study's first guesses that earlier studies gave; kept for when there is more room.
    """
    journal = folder / JOURNAL
    if not journal.exists():  # whole or not at all: a study that was cut off here begins anew
        directions = [objective.direction for objective in objectives]

        def begin(fresh: optuna.Study) -> None:
            fresh.set_user_attr(WARM, list(warm))
            fresh.add_trials(priors)

        write_journal(journal, name, directions, begin)
    study = load_study(journal, name)
    for guess in _untried(study, first_guesses)[: None if trials is None else _room(study, trials)]:
        study.enqueue_trial(guess)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([objective.metric for objective in objectives])
    study.sampler = make_sampler(sampler, seed)
    return study


def _untried(study: optuna.Study, guesses: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that no trial of the study itself has had or waits with: an extended study has room for more of them."""
    own = [trial for trial in study.get_trials(deepcopy=False) if not is_prior(trial)]
    had = [trial.system_attrs.get("fixed_params", {}) | trial.params for trial in own]
    return [guess for guess in guesses if not any(guess.items() <= params.items() for params in had)]


def _room(study: optuna.Study, trials: int) -> int:
    """How many of so many trials are neither begun nor waiting; one that failed before it began does not count."""
    own = [trial for trial in study.get_trials(deepcopy=False) if not is_prior(trial)]
    return max(0, trials - sum(trial.state != TrialState.FAIL or "state" in trial.user_attrs for trial in own))


def kept_guesses(folder: Path) -> list[dict[str, Any]]:
    """The first guesses that earlier studies gave when the study of a folder began."""
    return load_study(folder / JOURNAL).user_attrs.get(WARM, [])


def load_study(journal: Path, name: str | None = None) -> optuna.Study:
    """The study of a journal that is there; without a name the one that it has."""
    storage = JournalStorage(Journal(journal))
    return optuna.load_study(study_name=name or storage.get_all_studies()[0].study_name, storage=storage)


def write_journal(journal: Path, name: str, directions: list[Any], fill: Callable[[optuna.Study], None]) -> None:
    """Writes a journal with one study, and puts it in its place when it is whole.

    Args:
        journal: where it shall be; one that is there is replaced.
        name: the study's.
        directions: Optuna's.
        fill: called with the new study, adds what it shall have.
    """
    partial = journal.with_suffix(".partial")
    for rest in (partial, partial.with_name(f"{partial.name}.lock")):  # of a session that was killed here
        rest.unlink(missing_ok=True)
    storage = JournalStorage(Journal(partial))
    fill(optuna.create_study(study_name=name, storage=storage, directions=directions))
    os.replace(partial, journal)


def is_prior(trial: FrozenTrial) -> bool:
    """Whether it is another study's trial, from which the sampler learns."""
    return FROM in trial.user_attrs


def count_priors(study: optuna.Study) -> int:
    """How many trials of other studies it begins with; its own trials are counted from there."""
    return sum(map(is_prior, study.get_trials(deepcopy=False)))


def own_study(study: optuna.Study) -> optuna.Study:
    """The study without other studies' trials, in memory where it has any: for what is reported of it."""
    if not count_priors(study):
        return study
    own = optuna.create_study(study_name=study.study_name, directions=study.directions)
    own.add_trials(trial for trial in study.get_trials(deepcopy=False) if not is_prior(trial))
    return own


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


def discard(study: optuna.Study, number: int) -> None:
    """Ends a trial that got no whole configuration."""
    study._storage.set_trial_user_attr(study.get_trials(deepcopy=False)[number]._trial_id, PARTIAL, True)
    study.tell(number, state=TrialState.FAIL)


def reconcile(study: optuna.Study, ledger: Ledger) -> None:
    """After an interruption: tells Optuna what only the ledger knows, and ends what only Optuna knows."""
    records = {record.number: record for record in ledger.of_role("trial")}
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        record = records.get(trial.number)
        if record is None:
            discard(study, trial.number)
            if guess := trial.system_attrs.get("fixed_params"):  # a first guess that never began
                study.enqueue_trial(guess)
        elif record.state != RUNNING:
            tell(study, record)
