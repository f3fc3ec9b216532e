"""Budgets: what a study may spend, what it has spent, and which of them ended it.

Hard budgets (`time_budget`, `gpu_hours`, `money`, `total_epochs`) hold for the whole study, all its sessions and the
final included. The search ends early enough to leave the final its share, the reserve; in the final itself there is
none. Where time, GPU-hours or money run out, what runs is cut off and PRUNED. `total_epochs` needs no cut: a trial is
only begun where it fits at full length beside the reserve and all that runs, so the sum is never overrun.

Soft ones (`target`, `patience`, `trials`) begin no further trial; those that run come to their end.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.account import Account, how_it_ended
from search.ledger import COMPLETE, RUNNING, Ledger, TrialRecord
from search.objective import Objective, format_value
from search.settings import Settings
from search.terminal import span
from trainables.errors import InputError

RESERVED_AT_MOST = 0.5  # of time, GPU-hours or money: what is left must be worth a search
CUTTING = ("time_budget", "gpu_hours", "money")  # the budgets that end what runs
MORE = {
    "time_budget": "raise it: --time-budget SECONDS",
    "gpu_hours": "raise it: --set gpu_hours=HOURS",
    "money": "raise it: --set money=AMOUNT",
    "total_epochs": "raise it: --set total_epochs=N",
    "target": "set a further one, or none: --set target=null",
    "patience": "raise it: --set patience=N",
}


@dataclass(frozen=True)
class Spent:
    """What a study has spent: `trials` begun, baselines and finalists not counted; all else is everybody's."""

    trials: int
    wall_s: float
    gpu_hours: float
    money: float | None  # None without a price
    epochs: int

    def __str__(self):
        """One line for people."""
        cost = f"{self.gpu_hours:.3g} GPU-hours, " if self.gpu_hours else ""
        cost += f"{self.money:.2f} for them, " if self.gpu_hours and self.money is not None else ""
        return f"{span(self.wall_s)}, {cost}{self.epochs} epochs in all"


@dataclass(frozen=True)
class Ending:
    """What ended a study: the field of the settings, its value, and the reason in words."""

    field: str
    limit: Any
    reason: str


@dataclass
class _Booked:
    """What of one record is in the sums."""

    started: float
    epochs: int = 0
    seconds: float = 0.0
    committed: int = 0  # epochs that it has trained or, while it runs, may train
    running: bool = False  # in this session
    ended: bool = False


class Budgets:
    """Keeps a study's sums and says when no more may begin, or run.

    The sums follow the ledger's changes, one record at a time, so that asking costs the same however many trials there
    are. GPU-hours are the lanes' time at work times their GPUs (`Account.gpu_s`).

    Args:
        settings: the budgets, and the runs that the final has.
        ledger: the study's records; watched from now on.
        account: the wall time and the lanes' time; told how many of the lanes are at work.
        objective: the one that `target` and `patience` are about.
        final_runs: how many runs the final has at most.
    """

    def __init__(self, settings: Settings, ledger: Ledger, account: Account, objective: Objective, final_runs: int):
        self._settings, self._account, self._objective = settings, account, objective
        self._final_runs, self._in_final = final_runs, False
        self._ending: Ending | None = None
        self._soft: Ending | None = None  # what lets the running ones come to their end
        self._booked: dict[str, _Booked] = {}
        self._trials = self._epochs = self._committed = self._running = 0
        self._seconds = 0.0
        self._at_work: set[str] = set()
        self._begun, self._start_s = account.wall_s, None  # when Tune began, and what its first start took
        self._best: TrialRecord | None = None
        self._since_best = 0
        account.lanes_hold(settings.gpus_per_lane)
        self._lock = threading.RLock()  # records are saved by the tracking thread too
        for record in sorted(ledger.records.values(), key=lambda record: record.ended or 0.0):
            self._note(record, here=False)
        ledger.watch(self._note)

    def spent(self) -> Spent:
        """What was spent until now."""
        price, hours = self._settings.price_per_gpu_hour, self._gpu_hours()
        epochs = self._epochs + self._account.lost_epochs
        return Spent(self._trials, self._account.wall_s, hours, price and hours * price, epochs)

    def reason(self) -> str | None:
        """Why no further trial may begin, in one line; None while one may. What it once said stays."""
        with self._lock:
            if self._soft is None and not self._in_final:
                self._soft = self._satisfied()
            if self._ending is None or self._ending.field not in CUTTING:  # what still runs may run out of a hard one
                self._ending = self._overrun() or self._soft
            return self._ending and self._ending.reason

    def cut(self) -> str | None:
        """Why what runs must be cut off, None while it may go on."""
        self.reason()
        return self._ending.reason if self._ending and self._ending.field in CUTTING else None

    def admits(self, epochs: int | None = None, fresh: bool = True) -> bool | None:
        """Whether a run may begin.

        Args:
            epochs: what it has still to train; None: a trial's full length.
            fresh: it is a new one; those that an earlier session left off come to their end in spite of soft budgets.

        Returns:
            None where it may not yet: a running trial that is stopped early would leave it the epochs.
        """
        with self._lock:
            if self.cut() or (fresh and self.reason()):
                return False
            total, epochs = self._settings.total_epochs, self._settings.epochs if epochs is None else epochs
            reserve = 0 if self._in_final else self._final_epochs
            if total is None or self._committed + self._account.lost_epochs + epochs + reserve <= total:
                return True
            if self._running:
                return None
            left = " beside the final" if reserve else ""
            self._ending = self._soft = Ending(
                "total_epochs", total, f"stopped by the total of {total} epochs: no other run fits{left}"
            )
            return False

    def used_up(self) -> str | None:
        """Why not even the final may run any more, None while it may."""
        with self._lock:
            ending = self._overrun(reserved=False)
            return ending and ending.reason

    def search(self) -> None:
        """The search begins: what comes before the first trial's start is Tune's."""
        self._begun = self._account.wall_s

    def at_work(self, record: TrialRecord) -> None:
        """A record goes to a lane; it holds that until it has ended."""
        with self._lock:
            if self._start_s is None:
                self._start_s = self._account.wall_s - self._begun
            self._at_work.add(record.trial_id)
            self._hold()

    def _hold(self) -> None:
        """Which trials are packed together is not known here: into as many lanes as there may be."""
        self._account.hold(min(len(self._at_work), self._settings.lanes))

    def all_done(self) -> None:
        """All that there was to run in this phase has run: a budget that was used up just then ended nothing.

        A target that was reached is told all the same.
        """
        with self._lock:
            if self._ending and self._ending.field != "target":
                self._ending = self._soft if self._soft and self._soft.field == "target" else None

    def final(self) -> Ending | None:
        """Begins the final, for which there is no reserve; returns what ended the search, None where all trials ran."""
        with self._lock:
            search, self._ending, self._soft, self._in_final = self._ending, None, None, True
            return search

    @property
    def ending(self) -> Ending | None:
        """What ended the phase in hand."""
        return self._ending

    @property
    def _final_epochs(self) -> int:
        return self._final_runs * self._settings.epochs

    def _gpu_hours(self) -> float:
        return self._account.gpu_s / 3600

    def _overrun(self, reserved: bool = True) -> Ending | None:
        """The hard budget, but for epochs, that is used up beside the reserve, or without one."""
        settings = self._settings
        # A simulated epoch takes no time, whatever its curve says.
        epoch_s = self._seconds / self._epochs if self._epochs and not settings.simulate else 0.0
        beside = settings.concurrency or 1
        rounds = -(-self._final_runs // beside)
        # One epoch more: the lanes end the one that they are in before they take the final's runs, which Tune has to
        # get under way as it had the search's.
        wall_reserve = (rounds * settings.epochs + 1) * epoch_s + (self._start_s or 0.0) if rounds else 0.0
        gpu_reserve = (self._final_epochs + beside) * epoch_s * settings.gpus_per_trial / 3600 if rounds else 0.0
        hours, price = self._gpu_hours(), settings.price_per_gpu_hour or 0.0
        for field, spent, reserve, words in (
            ("time_budget", self._account.wall_s, wall_reserve, "time budget ({:g} s)"),
            ("gpu_hours", hours, gpu_reserve, "budget of {:g} GPU-hours"),
            ("money", hours * price, gpu_reserve * price, f"money ({{:g}} at {price:g} a GPU-hour)"),
        ):
            limit = getattr(settings, field)
            kept = 0.0 if self._in_final or not reserved or limit is None else min(reserve, RESERVED_AT_MOST * limit)
            if limit is not None and spent > limit - kept:
                return Ending(field, limit, f"stopped by the {words.format(limit)}")
        return None

    def _satisfied(self) -> Ending | None:
        """The target that is reached, or the patience that is lost."""
        target, patience, best = self._settings.target, self._settings.patience, self._best
        if best is None:
            return None
        if target is not None and best.score >= self._objective.sign * target:
            metric = self._objective.metric
            sign = ">=" if self._objective.maximize else "<="
            value = format_value(metric, best.value)
            return Ending(
                "target", target, f"target reached: {metric} {value} {sign} {target:g} by trial {best.trial_id}"
            )
        if patience is not None and self._since_best >= patience:
            return Ending("patience", patience, f"no better trial in the last {patience}")
        return None

    def _note(self, record: TrialRecord, here: bool = True) -> None:
        """Brings the sums up to one record; `here`: it changed in this session."""
        with self._lock:
            booked = self._booked.get(record.trial_id)
            if booked is None or booked.started != record.started:
                if booked:  # begun anew, as failed baselines and finalists are: what it has trained was trained
                    self._account.lose(booked.epochs)
                    self._epochs, self._committed = self._epochs - booked.epochs, self._committed - booked.committed
                    self._seconds, self._running = self._seconds - booked.seconds, self._running - booked.running
                else:
                    self._trials += record.role == "trial"
                booked = self._booked[record.trial_id] = _Booked(record.started)
            running = here and record.state == RUNNING
            committed = record.config["epochs"] if running else record.epoch
            seconds = record.seconds
            self._epochs += record.epoch - booked.epochs
            self._seconds += seconds - booked.seconds
            self._committed += committed - booked.committed
            self._running += running - booked.running
            booked.epochs, booked.seconds, booked.committed, booked.running = record.epoch, seconds, committed, running
            if record.state != RUNNING and not booked.ended:
                booked.ended = True
                self._at_work.discard(record.trial_id)
                self._hold()
                if record.role == "trial":
                    self._judge(record)

    def _judge(self, record: TrialRecord) -> None:
        """Whether an ended trial is the best so far."""
        if record.state == COMPLETE and (self._best is None or record.score > self._best.score):
            self._best, self._since_best = record, 0
        else:
            self._since_best += 1


def all_ran(asked: int, points: int | None, grid: bool, ran: int) -> Ending:
    """The ending of a study that no other budget ended.

    Args:
        asked: how many trials there were to be.
        points: how many the space has, where they are all tried.
        grid: they are those of one.
        ran: how many trials there are; more where an earlier session was asked for more, or had other points.
    """
    if points is not None and points <= asked:
        where = "the grid" if grid else "the space"
        reason = f"its 1 point of {where} has run" if points == 1 else f"all {points} points of {where} have run"
    elif ran > asked:
        reason = f"{ran} trials have run, more than the {asked} asked for"
    else:
        reason = "its 1 trial has run" if asked == 1 else f"all {asked} trials have run"
    return Ending("trials", asked, reason)


def check_left(folder: Path, settings: Settings, maximize: bool) -> None:
    """Refuses to go on with a study under the budget that ended it.

    Raises:
        InputError: that budget was not raised.
    """
    ended = how_it_ended(folder)
    field = ended.get("ended_by_field")
    if field not in MORE:
        return
    if not ended.get("ended_by_written"):  # it was cut off before its results were written
        return
    before, now = ended["ended_by_limit"], getattr(settings, field)
    if field == "target" and not maximize:
        before, now = -before, now and -now
    if now is not None and now <= before:
        raise InputError(f"{field}: it ended this study ({ended['ended_by']}); {MORE[field]}")
