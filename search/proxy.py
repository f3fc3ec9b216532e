"""Tune's side of a trial: a light proxy that hands the configuration to the broker and passes the lane's reports on."""

import math
from types import SimpleNamespace

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from search.ledger import OBJECTIVE, RUNNING, Ledger
from trainables.checkpoint import drop_checkpoint

GROUPS = ("train", "val", "best", "time", "cost")  # the metrics' first words; the rest of a result is Tune's own


class TrialError(RuntimeError):
    """A trial failed; the message is the reason."""


def make_proxy(broker):
    """The Tune function trainable of all trials; it sits on the head node and takes no worker's CPU."""

    def proxy(config: dict) -> None:
        trial_id = config["trial_id"]
        ray.get(broker.submit.remote(trial_id, config["job"]))
        while True:
            kind, payload = ray.get(broker.next.remote(trial_id))
            if kind == "report":
                tune.report(payload)  # ends this thread by SystemExit where Tune stops the trial
            elif kind in ("failed", "bad_input"):
                raise TrialError(payload)
            else:
                return

    return tune.with_resources(proxy, {"node:__internal_head__": 0.001})


def make_scheduler(settings, ledger: Ledger):
    """Tune's scheduler of a study: ASHA, or none; baselines are never stopped, since all is compared with them.

    A resumed study's earlier results are replayed, so that ASHA judges by all that is known.
    """
    if settings.scheduler == "none":
        return FIFOScheduler()
    scheduler = _TrialsOnly(
        ledger,
        time_attr="epoch",
        metric=OBJECTIVE,
        mode="max",
        max_t=settings.epochs + 1,  # a full-length trial ends by itself, so that it is COMPLETE and not stopped
        grace_period=min(settings.grace_epochs, settings.epochs),
        reduction_factor=settings.reduction_factor,
        stop_last_trials=False,
    )
    for record in ledger.of_role("trial"):
        if record.state != RUNNING:
            scheduler.replay(record, f"earlier-{record.trial_id}")
    return scheduler


class Live:
    """An object of the driver alone. Tune pickles and copies its set-up for a restore of its own, which the ledger
    replaces: a copy of this is itself, a pickle of it is empty."""

    def __getstate__(self):
        return {}

    def __deepcopy__(self, memo):
        return self


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
        if trial.config["role"] == "baseline" or not math.isfinite(result[OBJECTIVE]):
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller, trial, result):
        if trial.config["role"] != "baseline":
            super().on_trial_complete(tune_controller, trial, result)

    def replay(self, record, trial_id: str) -> None:
        """Enters a trial's results of an earlier session into the rungs, under an id of Tune's."""
        trial = SimpleNamespace(trial_id=trial_id)
        for entry in record.history:
            if math.isfinite(entry[OBJECTIVE]):
                self._brackets[0].on_result(trial, entry["epoch"], self._metric_op * entry[OBJECTIVE])


class StudyCallback(Live, Callback):
    """Keeps ledger, tracking and view up to date with what Tune sees, and sends Tune's verdicts to the broker."""

    def __init__(self, broker, ledger: Ledger, tracker, view):
        self._broker, self._ledger, self._tracker, self._view = broker, ledger, tracker, view

    def on_trial_start(self, iteration, trials, trial, **info):
        record = self._record(trial)
        self._tracker.trial_started(record)
        self._view.trial_started(record)

    def on_trial_result(self, iteration, trials, trial, result, **info):
        record = self._record(trial)
        metrics = {key: value for key, value in result.items() if key == "epoch" or key.split("/")[0] in GROUPS}
        if record.add(metrics):
            self._ledger.save(record)  # before the verdict: what a lane builds on is on disk
            self._tracker.trial_epoch(record, metrics)
            self._view.trial_epoch(record)
        # Tune marks the result as done where its scheduler decided to stop the trial.
        self._broker.verdict.remote(record.trial_id, int(metrics["epoch"]), not result.get("done", False))

    def on_trial_complete(self, iteration, trials, trial, **info):
        self._finished(trial)

    def on_trial_error(self, iteration, trials, trial, **info):
        self._finished(trial)

    def _finished(self, trial) -> None:
        record = self._record(trial)
        drop_checkpoint(self._ledger.trial_folder(record.trial_id))  # an ended trial never goes on
        self._tracker.trial_ended(record)
        self._view.trial_ended(record)
        self._broker.forget.remote(record.trial_id)

    def _record(self, trial):
        return self._ledger.records[trial.config["trial_id"]]


class StudyStopper(Live, tune.Stopper):
    """Ends Tune's run when the study says so (Ctrl-C, time budget, no lane left); asked at every turn of its loop."""

    def __init__(self, should_stop):
        self._should_stop = should_stop

    def __call__(self, trial_id, result):
        return False

    def stop_all(self):
        return self._should_stop()
