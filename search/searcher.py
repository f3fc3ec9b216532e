"""Our searchers: Tune asks, the study answers, and Optuna is told the truth (COMPLETE, PRUNED or FAIL) of every trial.

Ray's own OptunaSearch records trials that the scheduler stopped as COMPLETE with a low-fidelity value, and leaves a
trial whose value is NaN RUNNING for ever; here the state is decided by the ledger's record, once.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search.baselines import BaselineSearch
from search.journal_file import sync
from search.ledger import COMPLETE, RUNNING, Ledger, TrialRecord
from search.optuna_study import count_priors, discard, reconcile, tell
from search.schedulers import Live
from trainables.errors import InputError, StudyError

MAX_REFUSED = 20  # configurations in a row that the space itself makes invalid


class RecordSearcher(Live, Searcher, ABC):
    """Gives Tune one record of the ledger after another, and decides its state when it ended.

    Args:
        ledger: the study's records; a finished trial's state is decided and written here.
        hand_over: gives a record to the lanes.
        reason: why the broker's trial of that id failed.
        objectives: metric and whether more of it is better; the first is Tune's.
        admits: whether a run may begin, as `Budgets.admits`.
        room: for how many runs there are lanes: none is drawn before one could take it, as later draws know more.
        had_no_room: whether the broker's trial of that id failed since a disk was full.

    Attributes:
        ended: how many of its records have ended.
        no_room: what a full disk kept a trial from; all the others would meet it too, so that the study is to stop.
    """

    def __init__(
        self,
        ledger: Ledger,
        hand_over: Callable[[TrialRecord], Any],
        reason: Callable[[str], str],
        objectives: dict[str, bool],
        admits: Callable[[int | None, bool], bool | None] = lambda epochs, fresh: True,
        room: Callable[[], float] = lambda: math.inf,
        had_no_room: Callable[[str], bool] = lambda trial_id: False,
    ):
        metric, maximize = next(iter(objectives.items()))
        super().__init__(metric=metric, mode="max" if maximize else "min")
        self._ledger, self._hand_over, self._reason, self._objectives = ledger, hand_over, reason, objectives
        self._admits, self._room, self._had_no_room = admits, room, had_no_room
        self._asked: dict[str, TrialRecord] = {}
        self.ended = 0
        self.no_room: str | None = None

    @abstractmethod
    def _next(self) -> TrialRecord | None:
        """The next record to train, None where there is none left."""

    @abstractmethod
    def _known(self) -> TrialRecord | None:
        """The next record to train, where there is one already."""

    def _ended(self, record: TrialRecord) -> None:
        """What else is to be told of an ended record, after it was saved."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """What Tune is to know of the next trial, which goes to the lanes at once.

        Tune copies what it is given for each result, so that is no more than the trial's name and role.
        `FINISHED` where none is left or the search is to end, None where it waits.

        Raises:
            StudyError: the space gives nothing that can be trained.
        """
        if self.no_room:
            return Searcher.FINISHED
        known = self._known()
        admitted = self._admits(known and known.config["epochs"] - known.epoch, known is None)
        if not admitted:
            return None if admitted is None else Searcher.FINISHED
        if len(self._asked) >= self._room():
            return None
        record = self._next()
        if record is None:
            return Searcher.FINISHED
        self._asked[trial_id] = record
        if not record.history:  # those of a list were made long before their turn
            record.started = time.time()
        self._ledger.save(record)
        self._hand_over(record)
        return {"trial_id": record.trial_id, "role": record.role}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: Optuna gets all intermediate values at the end, the last one with them."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Decides what the record has come to; one that had no room on a disk goes on in another session."""
        record = self._asked.pop(trial_id)
        self.ended += 1
        reason = self._reason(record.trial_id) if error else None
        if error and self._had_no_room(record.trial_id):
            self.no_room = f"trial {record.trial_id} cannot write its files: {reason}"
            return
        record.finish(reason)
        self._ledger.save(record)
        self._ended(record)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger and Optuna's journal are on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""


class ListSearcher(RecordSearcher):
    """Gives the records of a list, those that an earlier session left running first; Optuna has no part in them."""

    def __init__(self, records: Iterable[TrialRecord], *arguments):
        super().__init__(*arguments)
        self._records = sorted(records, key=lambda record: not record.history)

    def left(self) -> int:
        """How many there are to train."""
        return len(self._records)

    def _next(self) -> TrialRecord:
        return self._records.pop(0)

    def _known(self) -> TrialRecord | None:
        return self._records[0] if self._records else None


class StudySearcher(RecordSearcher):
    """Gives Tune the interrupted trials first, then the baselines and their searches, then what Optuna asks for.

    Args:
        study: Optuna's study.
        space: the search function, giving a trial's fields.
        compose: makes a whole configuration (a dict) of a trial's fields, raising InputError.
        baselines: by name, their whole configurations.
        tuning: the small searches of those that are tuned.
        grid: the points that are tried one after another in place of what Optuna's sampler would draw.
        arguments: those of `RecordSearcher`.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Callable[[Any], dict[str, Any]],
        compose: Callable[[dict[str, Any]], dict[str, Any]],
        baselines: dict[str, dict[str, Any]],
        tuning: list[BaselineSearch],
        grid: list[dict[str, Any]] | None,
        *arguments,
    ):
        super().__init__(*arguments)
        self._study, self._space, self._compose, self._baselines, self._grid = study, space, compose, baselines, grid
        self._tuning = {search.name: search for search in tuning}
        mine = [record for record in self._ledger.records.values() if record.role in ("trial", "baseline")]
        self._again = [record for record in mine if record.state == RUNNING]
        known = {
            record.trial_id for record in mine if record.role == "baseline" and record.state in (RUNNING, COMPLETE)
        }
        self._fresh = [name for name in baselines if name not in known]  # those that failed or were cut off as well
        self._priors = count_priors(study)  # Optuna numbers them as well, the study's own trials are counted from 0
        reconcile(study, self._ledger)

    def left(self, trials: int) -> int:
        """How many trials and baselines a study of so many trials in all still has to run."""
        again = sum(record.role == "trial" for record in self._again)
        missing = again + max(0, trials - len(self._ledger.of_role("trial")))
        if self._grid is not None:
            missing = min(missing, len(self._untried()) + again)
        elif self._exhausted():
            missing = min(missing, again)
        baselines = sum(record.role == "baseline" for record in self._again) + len(self._fresh)
        return missing + baselines + sum(search.left() for search in self._tuning.values())

    @property
    def running(self) -> int:
        """How many of them an earlier session left off."""
        return len(self._again)

    def _next(self) -> TrialRecord | None:
        if self._again:
            return self._again.pop(0)
        if self._fresh:
            name = self._fresh.pop(0)
            return TrialRecord(name, "baseline", self._baselines[name], {}, self._objectives)
        for search in self._tuning.values():
            if search.left():
                return search.next(self._objectives)
        for _ in range(MAX_REFUSED):
            if self._exhausted():
                return None
            trial = self._ask()
            try:
                fields = self._space(trial)
            except InputError as error:
                discard(self._study, trial.number)
                refused = error
                continue
            try:
                config = self._compose(fields)
            except InputError as error:
                self._study.tell(trial, state=TrialState.FAIL)
                refused = error
                continue
            sync(self._study)  # before the ledger knows it
            trial_id = str(trial.number - self._priors)
            return TrialRecord(trial_id, "trial", config, trial.params, self._objectives, trial.number)
        raise StudyError(f"the space gave {MAX_REFUSED} bad configurations in a row: {refused}")

    def _known(self) -> TrialRecord | None:
        return self._again[0] if self._again else None

    def _ended(self, record: TrialRecord) -> None:
        if record.role == "trial":
            tell(self._study, record)
        elif record.of:
            self._tuning[record.of].tell(record)

    def _exhausted(self) -> bool:
        """Whether `brute` has tried all; what is enqueued comes all the same."""
        return self._study.sampler.exhausted(self._study) and not self._waiting()

    def _waiting(self) -> bool:
        return bool(self._study.get_trials(deepcopy=False, states=[TrialState.WAITING]))

    def _ask(self) -> optuna.Trial:
        if self._grid is not None and not self._waiting():
            self._study.enqueue_trial(self._untried()[0])
        return self._study.ask()

    def _untried(self) -> list[dict[str, Any]]:
        """The grid's points that no trial has had, running ones and those of earlier sessions included."""
        tried = [record.params for record in self._ledger.of_role("trial")]
        return [point for point in self._grid if point not in tried]
