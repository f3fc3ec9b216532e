"""Our searcher: Tune asks, Optuna answers and is told the truth (COMPLETE, PRUNED or FAIL) of every trial.

Ray's own OptunaSearch records trials that the scheduler stopped as COMPLETE with a low-fidelity value, and leaves a
trial whose value is NaN RUNNING for ever; here the state is decided by the ledger's record, once.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search.ledger import COMPLETE, FAILED, OBJECTIVE, PRUNED, RUNNING, Ledger, TrialRecord
from search.resume import JOURNAL
from trainables.errors import InputError, StudyError

STATES = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}
MAX_REFUSED = 20  # configurations in a row that the space itself makes invalid


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler by our name for it; multivariate, grouped TPE with constant liar is the default."""
    return {
        "tpe": lambda: optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=8
        ),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=seed),
        "qmc": lambda: optuna.samplers.QMCSampler(seed=seed),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
        "grid": lambda: optuna.samplers.RandomSampler(seed=seed),  # every point is enqueued: it draws nothing
    }[name]()


def open_study(folder: Path, name: str, sampler: str, seed: int) -> optuna.Study:
    """The Optuna study of a folder (`optuna.log`, a journal that optuna-dashboard opens), new or as it was left."""
    study = optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        direction="maximize",
        load_if_exists=True,
    )
    # A sampler that goes on must not draw again what it drew first.
    study.sampler = make_sampler(sampler, (seed + 7919 * len(study.get_trials(deepcopy=False))) % 2**32)
    return study


class StudySearcher(Searcher):
    """Gives Tune the interrupted trials first, then the baselines, then what Optuna asks for.

    Args:
        study: Optuna's study.
        space: the search function, giving a trial's fields.
        compose: makes a whole configuration (a dict) of a trial's fields, raising InputError.
        baselines: by name, their whole configurations.
        ledger: the study's records; a finished trial's state is decided and written here.
        make_job: the broker's job for a record.
        reason: why the broker's trial of that id failed.
        grid: the points that are tried one after another in place of what Optuna's sampler would draw.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Callable[[Any], dict[str, Any]],
        compose: Callable[[dict[str, Any]], dict[str, Any]],
        baselines: dict[str, dict[str, Any]],
        ledger: Ledger,
        make_job: Callable[[TrialRecord], dict[str, Any]],
        reason: Callable[[str], str],
        grid: list[dict[str, Any]] | None = None,
    ):
        super().__init__(metric=OBJECTIVE, mode="max")
        self._study, self._space, self._compose, self._baselines = study, space, compose, baselines
        self._ledger, self._make_job, self._reason, self._grid = ledger, make_job, reason, grid
        self._again = [record for record in ledger.records.values() if record.state == RUNNING]
        known = {record.trial_id for record in ledger.of_role("baseline") if record.state in (RUNNING, COMPLETE)}
        self._fresh = [name for name in baselines if name not in known]  # those that failed or were cut off as well
        self._asked: dict[str, TrialRecord] = {}
        reconcile(study, ledger)

    def left(self, trials: int) -> int:
        """How many trials and baselines a study of so many trials in all still has to run."""
        begun = len(self._ledger.of_role("trial")) - sum(record.role == "trial" for record in self._again)
        missing = max(0, trials - begun)
        if self._grid is not None:
            missing = min(missing, len(self._untried()) + sum(record.role == "trial" for record in self._again))
        return missing + sum(record.role == "baseline" for record in self._again) + len(self._fresh)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The next trial's configuration for Tune.

        Raises:
            StudyError: the space gives nothing that can be trained.
        """
        record = self._next()
        self._asked[trial_id] = record
        self._ledger.save(record)
        return {"trial_id": record.trial_id, "role": record.role, "job": self._make_job(record)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: Optuna gets all intermediate values at the end, the last one with them."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        record = self._asked.pop(trial_id)
        record.finish(self._reason(record.trial_id) if error else None)
        self._ledger.save(record)
        tell(self._study, record)

    def __getstate__(self):
        return {}  # Tune pickles its set-up for a restore of its own, which the ledger replaces

    def __deepcopy__(self, memo):
        return self

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger and Optuna's journal are on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""

    def _next(self) -> TrialRecord:
        if self._again:
            return self._again.pop(0)
        if self._fresh:
            name = self._fresh.pop(0)
            return TrialRecord(trial_id=name, role="baseline", config=self._baselines[name], params={})
        for _ in range(MAX_REFUSED):
            trial = self._ask()
            try:
                config = self._compose(self._space(trial))
            except (InputError, ValueError) as error:  # ValueError: Optuna's, where a resumed space has other choices
                self._study.tell(trial, state=TrialState.FAIL)
                refused = error
                continue
            return TrialRecord(trial_id=str(trial.number), role="trial", config=config, params=trial.params)
        raise StudyError(f"the space gave {MAX_REFUSED} bad configurations in a row: {refused}")

    def _ask(self) -> optuna.Trial:
        if self._grid is not None and not self._study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            self._study.enqueue_trial(self._untried()[0])
        return self._study.ask()

    def _untried(self) -> list[dict[str, Any]]:
        """The grid's points that no trial has had, running ones and those of earlier sessions included."""
        tried = [record.params for record in self._ledger.of_role("trial")]
        return [point for point in self._grid if point not in tried]


def tell(study: optuna.Study, record: TrialRecord) -> None:
    """Tells Optuna how a trial ended, with its value at every epoch; baselines are none of Optuna's."""
    if record.role != "trial":
        return
    stored = study.get_trials(deepcopy=False)[int(record.trial_id)]
    trial = optuna.trial.Trial(study, stored._trial_id)
    for entry in record.history:
        if math.isfinite(entry[OBJECTIVE]):
            trial.report(entry[OBJECTIVE], step=int(entry["epoch"]))
    trial.set_user_attr("state", record.state)
    if record.reason:
        trial.set_user_attr("reason", record.reason)
    # With PRUNED, Optuna takes the last intermediate value itself.
    study.tell(trial, record.value if record.state == COMPLETE else None, state=STATES[record.state])


def reconcile(study: optuna.Study, ledger: Ledger) -> None:
    """After an interruption: tells Optuna what only the ledger knows, and ends what only Optuna knows."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        record = ledger.records.get(str(trial.number))
        if record is None:
            study.tell(trial.number, state=TrialState.FAIL)
        elif record.state != RUNNING:
            tell(study, record)
