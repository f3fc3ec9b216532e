"""Tune's schedulers as a study uses them: only trials are judged, and earlier sessions' results count."""

import math
from types import SimpleNamespace

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from search import rungs
from search.ledger import RUNNING, Ledger, TrialRecord
from search.objective import Objective
from search.settings import Settings

GO_ON = TrialScheduler.CONTINUE
FEWEST = 3  # other trials that a median is taken over


class Live:
    """An object of the driver alone. Tune pickles and copies its set-up for a restore of its own, which the ledger
    replaces: a copy of this is itself, a pickle of it is empty."""

    def __getstate__(self):
        return {}

    def __deepcopy__(self, memo):
        return self


def make_scheduler(settings: Settings, ledger: Ledger, objective: Objective):
    """Tune's scheduler of a study; baselines and finalists are never stopped, since all is compared with them.

    A resumed study's earlier results are replayed, so that it is judged by all that is known.

    Args:
        settings: `scheduler` names it: `asha`, `hyperband` (ASHA with several brackets), `median` or `none`.
        ledger: the study's records, this session's included.
        objective: the metric that trials are judged by, and its direction.
    """
    if settings.scheduler == "none":
        return StopsNone(settings)
    scheduler = (_Median if settings.scheduler == "median" else _Halving)(settings, ledger, objective)
    for record in ledger.of_role("trial"):
        if record.state != RUNNING:
            scheduler.replay(record, f"earlier-{record.trial_id}")
    return scheduler


class _KeepsProxies(Live):
    """Before a scheduler of Tune's: an ended trial's proxy goes to the next trial, and none of them is dropped.

    Tune drops one where two trials end within a turn of its loop; and it gives one that comes free to a trial whose own
    is just starting, which it then drops, so that the trial after it needs another, and so on to the study's end: a
    process of Ray's, seconds of a core, for each trial. Tune offers no public way to either.
    """

    _slots: int
    _told = False

    def choose_trial_to_run(self, tune_controller):
        pending = tune_controller._pending_trials
        if pending and not self._told:
            self._told = True
            tune_controller._actor_cache.increase_max(next(iter(pending)).placement_group_factory, self._slots)
        fresh = (trial for trial in pending if trial not in tune_controller._trial_to_actor)
        return min(fresh, key=lambda trial: trial.trial_id, default=None)  # a set; Tune numbers them as they came


class StopsNone(_KeepsProxies, FIFOScheduler):
    """Every trial goes to its end."""

    def __init__(self, settings: Settings):
        super().__init__()
        self._slots = settings.concurrency


class _TrialsOnly(_KeepsProxies):
    """Before a scheduler of Tune's: it hears of trials alone, of finite values alone, and of no epoch twice.

    It also knows what trials of an earlier session had reported, and stops nobody in the last epoch, which is over.
    Subclasses have `replay`.
    """

    _ledger: Ledger
    _epochs: int

    def on_trial_add(self, tune_controller, trial):
        super().on_trial_add(tune_controller, trial)
        if _judged(trial):  # one that goes on must not be judged again by what is behind it
            self.replay(self._ledger.records[trial.config["trial_id"]], trial)

    def on_trial_result(self, tune_controller, trial, result):
        if not _judged(trial) or not math.isfinite(result[self._metric]):
            return GO_ON
        decision = super().on_trial_result(tune_controller, trial, result)
        return decision if result["epoch"] < self._epochs else GO_ON

    def on_trial_complete(self, tune_controller, trial, result):
        """Nothing: `on_trial_result` has had this result."""


def _judged(trial) -> bool:
    return trial.config["role"] == "trial"


def _reported(record: TrialRecord, metric: str) -> list[tuple[int, float]]:
    """A record's epochs and values, those that are numbers."""
    values = [(int(entry["epoch"]), entry.get(metric, math.nan)) for entry in record.history]
    return [(epoch, value) for epoch, value in values if math.isfinite(value)]


class _Halving(_TrialsOnly, AsyncHyperBandScheduler):
    """ASHA; with several brackets hyperband, where a trial's number decides its bracket, in every session the same."""

    def __init__(self, settings: Settings, ledger: Ledger, objective: Objective):
        super().__init__(
            time_attr="epoch",
            metric=objective.metric,
            mode=objective.direction[:3],
            max_t=settings.epochs + 1,  # a full-length trial ends by itself, so that it is COMPLETE and not stopped
            grace_period=min(settings.grace_epochs, settings.epochs),
            reduction_factor=settings.reduction_factor,
            brackets=rungs.brackets(settings),
            stop_last_trials=False,
        )
        self._settings, self._epochs, self._ledger = settings, settings.epochs, ledger
        self._slots = settings.concurrency

    def on_trial_add(self, tune_controller, trial):
        super().on_trial_add(tune_controller, trial)  # Ray draws a bracket
        self._trial_info[trial.trial_id] = self._bracket(trial.config["trial_id"]) if _judged(trial) else None

    def on_trial_complete(self, tune_controller, trial, result):
        self._trial_info.pop(trial.trial_id, None)

    def replay(self, record: TrialRecord, trial) -> None:
        """Enters a trial's results of an earlier session into the rungs, for a trial of Tune's or under a name."""
        known = SimpleNamespace(trial_id=trial) if isinstance(trial, str) else trial
        for epoch, value in _reported(record, self._metric):
            self._bracket(record.trial_id).on_result(known, epoch, self._metric_op * value)

    def _bracket(self, trial_id: str):
        return self._brackets[rungs.bracket_of(self._settings, trial_id)]


class _Median(_TrialsOnly, MedianStoppingRule):
    """The median stopping rule: a trial ends whose best value so far is below the median of the others' means so far.

    From `grace_epochs` on and with at least `FEWEST` others that came as far (Golovin et al., KDD 2017). Nothing is
    paused, which would need a checkpoint of Tune's.
    """

    def __init__(self, settings: Settings, ledger: Ledger, objective: Objective):
        super().__init__(
            time_attr="epoch",
            metric=objective.metric,
            mode=objective.direction[:3],
            grace_period=settings.grace_epochs,
            min_samples_required=FEWEST,
            hard_stop=True,
        )
        self._epochs, self._ledger, self._slots = settings.epochs, ledger, settings.concurrency

    def _on_insufficient_samples(self, tune_controller, trial, time):
        return GO_ON

    def replay(self, record: TrialRecord, trial) -> None:
        """Enters a trial's results of an earlier session, for a trial of Tune's or under a name."""
        known = [{"epoch": epoch, self._metric: value} for epoch, value in _reported(record, self._metric)]
        if known:  # Ray's own looks at the last result of all that it knows
            self._results[trial] = known
