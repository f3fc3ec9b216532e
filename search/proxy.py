"""Tune's side of a trial: a light proxy that passes on what a lane reports of it."""

from collections.abc import Iterable

import ray
from ray import tune
from ray.tune import Callback

from search.ledger import RUNNING, Ledger
from search.schedulers import Live
from search.students import student_of
from trainables.files import WARNINGS, drop_checkpoint

LATENCY = "cost/latency_ms"
PROXY_DEATHS = 3  # of one trial; it goes on meanwhile
# The metrics' first words; the rest is Tune's own
GROUPS = ("train", "val", "test", "best", "teacher", "time", "cost", "system")


class TrialError(RuntimeError):
    """A trial failed; the message is the reason."""


def make_proxy(broker):
    """The Tune function trainable of all trials; it sits on the head node and takes no worker's CPU."""

    def proxy(config: dict) -> None:
        trial_id = config["trial_id"]
        number = ray.get(broker.answered.remote(trial_id))  # a proxy of this trial that died has passed on the rest
        while True:
            kind, payload = ray.get(broker.next.remote(trial_id, number))
            number += 1
            if kind == "report":
                tune.report(payload)  # ends this thread by SystemExit where Tune stops the trial
            elif kind in ("failed", "bad_input"):
                raise TrialError(payload)
            else:
                return

    return tune.with_resources(proxy, {"node:__internal_head__": 0.001})


class StudyCallback(Live, Callback):
    """Keeps ledger, tracking and view up to date with what Tune sees, and sends Tune's verdicts to the broker."""

    def __init__(self, broker, ledger: Ledger, tracker, view, budgets, mirroring):
        self._broker, self._ledger, self._tracker, self._view = broker, ledger, tracker, view
        self._budgets, self._mirroring = budgets, mirroring
        self._started: set[str] = set()
        self._latency: dict[tuple[str, int], float] = {}
        self._warned: set[str] = set()

    def on_trial_start(self, iteration, trials, trial, **info):
        record = self._record(trial)
        if record.trial_id in self._started:  # with another proxy, since its own died
            return
        self._started.add(record.trial_id)
        self._budgets.at_work(record)
        self._tracker.trial_started(record)
        self._view.trial_started(record)

    def on_trial_result(self, iteration, trials, trial, result, **info):
        record = self._record(trial)
        self._warn(result.get(WARNINGS, ()))
        metrics = {key: value for key, value in result.items() if key == "epoch" or key.split("/")[0] in GROUPS}
        self._share_latency(record, metrics)
        if record.add(metrics):
            self._ledger.save(record)  # before the verdict: what a lane builds on is on disk
            self._tracker.trial_changed(record)
            self._view.trial_epoch(record)
        # Tune marks the result as done where its scheduler decided to stop the trial.
        verdict = record.trial_id, int(metrics["epoch"]), not result.get("done", False)
        self._mirroring.after(record, lambda: self._broker.verdict.remote(*verdict))

    def on_trial_complete(self, iteration, trials, trial, **info):
        self._finished(trial)

    def on_trial_error(self, iteration, trials, trial, **info):
        self._finished(trial)

    def on_trial_recover(self, iteration, trials, trial, **info):
        """Tune gives a trial whose proxy failed another one; it is of use only where the proxy itself died."""
        if ray.get(self._broker.is_over.remote(trial.config["trial_id"])):
            trial.run_metadata.num_failures = trial.max_failures  # the other one tells the same, and that is the end

    def _finished(self, trial) -> None:
        record = self._record(trial)
        if record.state == RUNNING:  # the disk was full: it goes on in another session
            return
        drop_checkpoint(self._ledger.trial_folder(record.trial_id))  # an ended trial never goes on
        self._mirroring.ended(record, lambda: self._tracker.trial_changed(record))
        self._view.trial_ended(record)
        self._broker.forget.remote(record.trial_id)

    def _warn(self, lines: Iterable[str]) -> None:
        """Each line once, though every lane may meet what it tells of."""
        for line in lines:
            if line not in self._warned:
                self._warned.add(line)
                self._view.note(line)

    def _share_latency(self, record, metrics: dict) -> None:
        """One measurement a student and study: a busy machine would make a Pareto front of its own noise."""
        if LATENCY in metrics:
            key = (student_of(record.config), record.config["img_size"])
            if key not in self._latency:
                records = self._ledger.records.values()
                alike = (one for one in records if (student_of(one.config), one.config["img_size"]) == key)
                known = (one.metric(LATENCY) for one in alike)
                self._latency[key] = next((value for value in known if value is not None), metrics[LATENCY])
            metrics[LATENCY] = self._latency[key]

    def _record(self, trial):
        return self._ledger.records[trial.config["trial_id"]]


class StudyStopper(Live, tune.Stopper):
    """Ends Tune's run when the study says so (Ctrl-C, a budget, no lane left); asked at every turn of its loop."""

    def __init__(self, should_stop):
        self._should_stop = should_stop

    def __call__(self, trial_id, result):
        return False

    def stop_all(self):
        return self._should_stop()
