"""Tune's schedulers as a study uses them: baselines are never stopped, and earlier sessions' results count."""

import math
from types import SimpleNamespace

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from search.ledger import RUNNING, Ledger
from search.objective import Objective


class Live:
    """An object of the driver alone. Tune pickles and copies its set-up for a restore of its own, which the ledger
    replaces: a copy of this is itself, a pickle of it is empty."""

    def __getstate__(self):
        return {}

    def __deepcopy__(self, memo):
        return self


def make_scheduler(settings, ledger: Ledger, objective: Objective):
    """Tune's scheduler of a study: ASHA, or none; baselines are never stopped, since all is compared with them.

    A resumed study's earlier results are replayed, so that ASHA judges by all that is known.
    """
    if settings.scheduler == "none":
        return FIFOScheduler()
    scheduler = _TrialsOnly(
        ledger,
        time_attr="epoch",
        metric=objective.metric,
        mode=objective.direction[:3],
        max_t=settings.epochs + 1,  # a full-length trial ends by itself, so that it is COMPLETE and not stopped
        grace_period=min(settings.grace_epochs, settings.epochs),
        reduction_factor=settings.reduction_factor,
        stop_last_trials=False,
    )
    for record in ledger.of_role("trial"):
        if record.state != RUNNING:
            scheduler.replay(record, f"earlier-{record.trial_id}")
    return scheduler


class _TrialsOnly(Live, AsyncHyperBandScheduler):
    """ASHA that judges no baseline, and knows the rungs that trials of an earlier session have passed."""

    def __init__(self, ledger: Ledger, **options):
        super().__init__(**options)
        self._ledger = ledger

    def on_trial_add(self, tune_controller, trial):
        super().on_trial_add(tune_controller, trial)
        if trial.config["role"] == "trial":  # one that goes on must not be judged again at a rung it has passed
            self.replay(self._ledger.records[trial.config["trial_id"]], trial.trial_id)

    def on_trial_result(self, tune_controller, trial, result):
        if trial.config["role"] == "baseline" or not math.isfinite(result[self._metric]):
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller, trial, result):
        if trial.config["role"] != "baseline":
            super().on_trial_complete(tune_controller, trial, result)

    def replay(self, record, trial_id: str) -> None:
        """Enters a trial's results of an earlier session into the rungs, under an id of Tune's."""
        trial = SimpleNamespace(trial_id=trial_id)
        for entry in record.history:
            if math.isfinite(value := entry[record.objective]):
                self._brackets[0].on_result(trial, entry["epoch"], self._metric_op * value)
