"""Whether early stopping could have misled: how far the ranking at an epoch agrees with the one at the end.

Spearman's rank correlation over the trials that ran to the end, with the interval of Bonett and Wright (2000). It is a
view through a keyhole: the trials that were stopped are not in it. Those that remain are alike, which lowers the
correlation; those that would have caught up late are missing, which raises it. What the stopped trials can still
show is whether any stood, when it was stopped, above one that was let through.
"""

import math
from dataclasses import dataclass

from search.ledger import COMPLETE, PRUNED, Ledger, TrialRecord
from search.statistics import NORMAL_95

FEWEST_TRIALS = 4  # a rank correlation of fewer says nothing
GOOD, FAIR = 0.7, 0.4  # correlations from which a ranking is called sound, and usable
MANY = 10  # trials from which a perfect correlation is no chance


@dataclass(frozen=True)
class Agreement:
    """One epoch beside the last one.

    Attributes:
        epoch: from 1.
        trials: how many complete trials it is over.
        correlation: Spearman's; None for fewer than `FEWEST_TRIALS`, or where all are equal.
        low, high: its 95% interval; None without a correlation, and for one of exactly 1 or -1.
        stopped: trials that were stopped at this epoch.
        ahead: how many of these stood above the last of the complete trials at this epoch.
        ahead_of_best: how many of these stood above the one that became the best.
    """

    epoch: int
    trials: int
    correlation: float | None
    low: float | None
    high: float | None
    stopped: int
    ahead: int
    ahead_of_best: int


def agreements(ledger: Ledger) -> list[Agreement]:
    """Each epoch but the last beside the last one, by the first objective over the complete trials."""
    complete = [record for record in ledger.of_role("trial") if record.state == COMPLETE]
    curves = {record.trial_id: _curve(record) for record in complete}
    last = max((record.epoch for record in complete), default=0)
    best = ledger.best()
    stopped: dict[int, list[float]] = {}
    for record in ledger.of_role("trial"):
        score = _curve(record).get(record.epoch)
        if record.state == PRUNED and not record.cut_off and score is not None:
            stopped.setdefault(record.epoch, []).append(score)
    found = []
    for epoch in range(1, last):
        pairs = [(curve[epoch], curve[last]) for curve in curves.values() if epoch in curve and last in curve]
        worst = min((early for early, _ in pairs), default=math.inf)
        here = stopped.get(epoch, [])
        counts = [sum(score > bar for score in here) for bar in (worst, curves[best.trial_id].get(epoch, math.inf))]
        found.append(Agreement(epoch, len(pairs), *_spearman(pairs), len(here), *counts))
    return found


def sentence(ledger: Ledger, rungs: list[int]) -> str:
    """Whether early stopping could have misled, in words; the weakest epoch at which trials were stopped decides.

    Args:
        rungs: the epochs at which trials were compared.
    """
    found = {one.epoch: one for one in agreements(ledger)}
    stopped, ahead, ahead_of_best = (
        sum(getattr(one, name) for one in found.values()) for name in ("stopped", "ahead", "ahead_of_best")
    )
    if not rungs and not stopped:
        return f"No trial was stopped early, so nothing was misled.{_sound_from(found)}"
    looked = [one for one in found.values() if one.stopped or (not stopped and one.epoch in rungs)]
    weakest = min((one for one in looked if one.correlation is not None), key=_correlation, default=None)
    if weakest is None:
        complete = sum(record.state == COMPLETE for record in ledger.of_role("trial"))
        text = (
            f"{complete} complete trial{'s' * (complete != 1)} cannot show whether early stopping could have misled: "
            f"it takes {FEWEST_TRIALS} or more, with different results."
        )
    else:
        where = "where trials were stopped" if stopped else "where trials could have been stopped"
        which = f", the weakest of the {len(looked)} epochs {where}," if len(looked) > 1 else f", {where},"
        text = (
            f"At epoch {weakest.epoch}{which} the ranking of the {weakest.trials} complete trials agrees with their "
            f"final one by {_figures(weakest)}: {_judged(weakest)}."
        )
        if weakest.correlation < FAIR:
            text += _sound_from(found)
    first, *others = ledger.objectives
    if others:
        text += f" That is {first} alone, by which trials are stopped: of {' and '.join(others)} it says nothing."
    if stopped:
        text += f" {ahead} of the {stopped} stopped trials stood, when stopped, above a trial that was let through"
        text += (
            f", {ahead_of_best} above the one that became the best; how they would have ended is not known."
            if ahead
            else "."
        )
    return text


def _correlation(one: Agreement) -> float:
    return one.correlation


def _sound_from(found: dict[int, Agreement]) -> str:
    """From which epoch on the ranking agreed well with the final one, as a sentence; empty where it is not known."""
    first = None
    for one in reversed(found.values()):
        if one.correlation is not None and one.correlation < GOOD:
            break
        first = one if one.correlation is not None else first
    if first is None:
        return ""
    return (
        f" From epoch {first.epoch} on, the ranking of the {first.trials} complete trials agreed well with their final "
        f"one (ρ ≥ {GOOD}): trials like these could be stopped from there (--set grace_epochs={first.epoch})."
    )


def _figures(one: Agreement) -> str:
    interval = "" if one.low is None else f" (95% CI {one.low:.2f} to {one.high:.2f})"
    return f"ρ = {one.correlation:.2f}{interval}"


def _judged(one: Agreement) -> str:
    few = one.trials < MANY if one.low is None else one.low < FAIR
    unsure = ", though so few trials leave it uncertain" if few else ""
    if one.correlation >= GOOD:
        return f"early stopping had good grounds{unsure}"
    if one.correlation >= FAIR:
        return f"early stopping was right more often than not{unsure}"
    return "early stopping could have misled, and a later one is safer"


def _curve(record: TrialRecord) -> dict[int, float]:
    """The first objective by epoch, turned so that larger is better, where it is a number."""
    sign = 1 if record.objectives[record.objective] else -1
    values = {int(entry["epoch"]): entry.get(record.objective) for entry in record.history}
    return {epoch: sign * value for epoch, value in values.items() if value is not None and math.isfinite(value)}


def _spearman(pairs: list[tuple[float, float]]) -> tuple[float | None, float | None, float | None]:
    from scipy import stats

    if len(pairs) < FEWEST_TRIALS or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return None, None, None
    found = float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    if abs(found) > 1 - 1e-9:  # Fisher's transformation is infinite there
        return float(round(found)), None, None
    half = NORMAL_95 * math.sqrt((1 + found**2 / 2) / (len(pairs) - 3))
    return found, math.tanh(math.atanh(found) - half), math.tanh(math.atanh(found) + half)
