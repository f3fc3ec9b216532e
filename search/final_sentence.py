"""The one sentence of the final to act on: better, worse, or no difference shown; and what makes it less than fair."""

from pathlib import Path

from search.final import (
    NONE,
    Comparison,
    Entrant,
    comparisons,
    count_seeds,
    entrants,
    plus_minus,
    rank,
    signed,
    tested_metric,
    trials_of,
    winner,
)
from search.ledger import Ledger
from search.objective import PERCENT, format_value
from search.statistics import summary


def sentence(
    ledger: Ledger, folder: Path, test_images: int | None, searched: dict[str, int | None] | None = None
) -> str | None:
    """What a manager may read: better, worse, or no difference shown; None where there was no final.

    Args:
        test_images: the test split's size, for the text.
        searched: the studies that it started warm from, as `search.resume.began_with`.
    """
    best = winner(ledger)
    if best is None:
        return None
    found, test = comparisons(ledger, folder), tested_metric(ledger)
    images = f" ({test_images} images)" if test_images else ""
    seeds = f"over {len(best.runs)} seeds" if len(best.runs) > 1 else "with one seed"
    opening = f"On the test split{images}, {seeds}, {best.name}"
    reached = f"reaches {test} {plus_minus(test, summary(best.values(test)))}"
    if not found:
        why = "no baseline of its student completed" if ledger.of_role("baseline") else "no baseline was asked for"
        return f"{opening} {reached}; {why}, so there is nothing to compare it with." + _passed_over(ledger, best)
    text = f"{opening} {reached}: {' and '.join(_claim(one, test) for one in found)}."
    text += _searched(ledger, [one.baseline.baseline for one in found]) + warmly(searched) + _passed_over(ledger, best)
    left_out = [(one.failed + one.unfinished, one.name) for one in entrants(ledger)]
    if said := ", ".join(f"{count} of {name}" for count, name in left_out if count):
        text += f" Runs that did not complete are left out: {said}."
    if len(best.runs) == 1 and not best.failed:
        text += " One seed says nothing of what training draws at random: --set seeds=3 does."
    return text


def _searched(ledger: Ledger, baselines: list[str]) -> str:
    """How unequally the trials and the baselines were searched, as a sentence; empty where equally."""
    trials = len(ledger.of_role("trial"))
    own = {name: sum(name in (one.of, one.trial_id) for one in ledger.of_role("baseline")) for name in baselines}
    if all(count == trials for count in own.values()):
        return ""
    if all(count == 1 for count in own.values()):
        return (
            f" The search was for it alone: {' and '.join(baselines)} ran as given (--set tune_baselines=N searches)."
        )
    tried = " and ".join(f"{count} of {name}" for name, count in own.items())
    return f" The search tried {trials} configurations of it, {tried}."


def warmly(searched: dict[str, int | None] | None) -> str:
    """What the trials' search, and no baseline's, was given by earlier ones, as a sentence; empty where nothing."""
    if not searched:
        return ""
    said = [
        f"{'' if count is None else f'{count} '}trial{'s' * (count != 1)} of {name}" for name, count in searched.items()
    ]
    return f" The search for it began with what {' and '.join(said)} had found."


def _passed_over(ledger: Ledger, best: Entrant) -> str:
    """The trials whose mean is better and does not count, as a sentence; empty where there is none."""
    better = [one for one in trials_of(ledger) if rank(one)[-1] > rank(best)[-1]]
    said = [f"{one.name}'s {_mean(one, ledger.objective)} over {count_seeds(len(one.runs))}" for one in better]
    return f" Better on the holdout, but of too few runs to be taken: {', '.join(said)}." if said else ""


def _mean(one: Entrant, metric: str) -> str:
    return format_value(metric, summary(one.values(metric)).mean)


def _claim(one: Comparison, test: str) -> str:
    points = " points" if test.replace("test/", "val/") in PERCENT else ""
    gap = signed(test, abs(one.difference)).lstrip("+") + points
    interval = f"95% CI {signed(test, one.low)} to {signed(test, one.high)}, " if one.low is not None else ""
    tested = "nothing could be tested" if one.p is None else f"p {one.p:.2g}" + " corrected" * (one.pairs > 1)
    figures = f"{interval}{tested}"
    common = f" over the {count_seeds(one.seeds)} that both have" if one.partly else ""
    if one.verdict == NONE:
        gap = f"{signed(test, one.difference)}{points}{common}"
        return f"no difference from {one.baseline.name} is shown ({gap}, {figures})"
    return f"it is {one.verdict} than {one.baseline.name} by {gap}{common} ({figures})"
