"""What the final showed: means with error bars, a paired test against each baseline, and one sentence to act on.

Two things are drawn at random: the training, by its seed, and the test split's images. Finalists are paired in both,
since those of one seed see the same stream and all see the same test images. For top-1 accuracy the error of a
difference is therefore the sum of two variances: that of the seeds' mean differences over the number of seeds, and that
of the images' (each averaged over the seeds) over the number of images. In a crossed design the sum counts the residual
twice, so it errs to the safe side. The interval and the p-value are Student's t with Satterthwaite's degrees of freedom
(1946). One seed leaves the images alone: McNemar's exact test. Other metrics leave the seeds alone: a paired t-test.
P-values are corrected for the number of baselines by Holm's method (1979). The winner is chosen on the holdout, so that
the test split chooses nothing.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.ledger import COMPLETE, Ledger, TrialRecord
from search.objective import PERCENT, format_value

if TYPE_CHECKING:
    import pandas

LEVEL = 0.05  # a difference is shown where the corrected p-value is below
BETTER, WORSE, NONE = "better", "worse", "no difference shown"


@dataclass(frozen=True)
class Summary:
    """Some runs' values of a metric: how many, their mean, standard deviation and 95% interval of the mean (Student's
    t); of one run there is no deviation."""

    count: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Entrant:
    """A trial or a baseline in the final, with its complete runs by seed."""

    of: str  # the record whose configuration it is
    baseline: str | None  # its name, None for a trial
    runs: dict[int, TrialRecord]
    failed: int  # runs that did not complete

    @property
    def name(self) -> str:
        """As people call it: `trial 7`, `kd`, or `kd (tuned: kd-3)`."""
        if self.baseline is None:
            return f"trial {self.of}"
        return self.baseline if self.of == self.baseline else f"{self.baseline} (tuned: {self.of})"

    def values(self, metric: str) -> list[float]:
        """The metric of each run, by seed."""
        return [run.metric(metric) for _, run in sorted(self.runs.items())]


@dataclass(frozen=True)
class _Tested:
    seeds: int
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    method: str = ""


@dataclass(frozen=True)
class Comparison(_Tested):
    """The winner beside a baseline on the test split; the difference is winner minus baseline, in the metric's units.

    Attributes:
        seeds: those that both have.
        low, high: the difference's 95% interval, not corrected; None where there is none.
        p: corrected for the number of baselines; None where nothing could be tested.
        method: how it was tested.
        baseline: the rival.
        verdict: BETTER, WORSE (the winner) or NONE.
    """

    baseline: Entrant | None = None
    verdict: str = NONE


def summary(values: list[float]) -> Summary:
    """Mean, deviation and interval of one value or more."""
    from scipy import stats

    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(len(values), mean, None, None, None)
    deviation = statistics.stdev(values)
    half = stats.t.ppf(1 - 0.05 / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return Summary(len(values), mean, deviation, mean - half, mean + half)


def entrants(ledger: Ledger) -> list[Entrant]:
    """All that ran in the final, trials first; of a baseline with several configurations the best on the holdout."""
    groups: dict[str, list[TrialRecord]] = {}
    for record in ledger.of_role("finalist"):
        groups.setdefault(record.of, []).append(record)
    found = []
    for of, records in groups.items():
        source = ledger.records.get(of)
        if source is None:
            continue
        baseline = (source.of or source.trial_id) if source.role == "baseline" else None
        whole = [one for one in records if one.state == COMPLETE and one.metric(_test_metric(ledger)) is not None]
        complete = {record.config["seed"]: record for record in whole}
        found.append(Entrant(of, baseline, complete, len(records) - len(complete)))
    trials = [entrant for entrant in found if entrant.baseline is None]
    baselines: dict[str, Entrant] = {}
    for entrant in found:
        rival = baselines.get(entrant.baseline)
        if entrant.baseline is not None and (rival is None or _score(entrant) > _score(rival)):
            baselines[entrant.baseline] = entrant
    return trials + list(baselines.values())


def winner(ledger: Ledger) -> Entrant | None:
    """The trial with the best mean of the first objective on the holdout over the final's seeds; None without one."""
    trials = [entrant for entrant in entrants(ledger) if entrant.baseline is None and entrant.runs]
    return max(trials, key=_score, default=None)


def best_record(ledger: Ledger) -> TrialRecord | None:
    """The trial that a study recommends: the final's winner, or the best of the search where there was no final."""
    best = winner(ledger)
    return ledger.best() if best is None else ledger.records[best.of]


def comparisons(ledger: Ledger, folder: Path) -> list[Comparison]:
    """The winner beside each baseline that has a run with a seed of the winner's.

    Args:
        folder: where the records' folders are, for the predictions.
    """
    best = winner(ledger)
    if best is None:
        return []
    rivals = [one for one in entrants(ledger) if one.baseline is not None and best.runs.keys() & one.runs.keys()]
    tested = [_test(best, rival, _test_metric(ledger), folder) for rival in rivals]
    sign = 1 if _maximized(best) else -1
    found = []
    for rival, one, p in zip(rivals, tested, holm([one.p for one in tested]), strict=True):
        shown = p is not None and p < LEVEL
        verdict = NONE if not shown else BETTER if sign * one.difference > 0 else WORSE
        found.append(Comparison(**{**vars(one), "p": p}, baseline=rival, verdict=verdict))
    return found


def holm(values: list[float | None]) -> list[float | None]:
    """Holm's correction (1979) of p-values for their number; None stays None and is not counted."""
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected


def final_frame(ledger: Ledger, folder: Path) -> "pandas.DataFrame":
    """One row an entrant, the winner first: means with deviations, the test mean's interval, and its comparison.

    A column that nobody has, as the interval is with one seed, is left out.
    """
    import pandas

    best, metric, test = winner(ledger), ledger.objective, _test_metric(ledger)
    beside = {one.baseline.of: one for one in comparisons(ledger, folder)}
    order = sorted(entrants(ledger), key=lambda one: (one != best, one.baseline is not None, -_score(one)))
    rows = []
    for one in order:
        row = {"name": f"{one.name} (best)" if one == best else one.name, "seeds": len(one.runs)}
        for name in (metric, test):
            row[name] = _plus_minus(name, summary(one.values(name))) if one.runs else "-"
        if one.runs and (found := summary(one.values(test))).deviation is not None:
            row["95% CI"] = f"{format_value(test, found.low)} to {format_value(test, found.high)}"
        if compared := beside.get(one.of):
            row["best is"] = f"{_signed(test, compared.difference)}, {compared.verdict}"
            row["p"] = compared.p
        if one.failed:
            row["name"] += f", {one.failed} failed"
        rows.append(row)
    columns = ["name", "seeds", metric, test, "95% CI", "best is", "p"]
    frame = pandas.DataFrame(rows, columns=[one for one in columns if any(one in row for row in rows)])
    return frame.astype(object).where(lambda cells: cells.notna(), None)


def sentence(ledger: Ledger, folder: Path, test_images: int | None) -> str | None:
    """What a manager may read: better, worse, or no difference shown; None where there was no final.

    Args:
        test_images: the test split's size, for the text.
    """
    best = winner(ledger)
    if best is None:
        return None
    found, test = comparisons(ledger, folder), _test_metric(ledger)
    images = f" ({test_images} images)" if test_images else ""
    seeds = f"over {len(best.runs)} seeds" if len(best.runs) > 1 else "with one seed"
    opening = f"On the test split{images}, {seeds}, {best.name}"
    reached = f"reaches {test} {_plus_minus(test, summary(best.values(test)))}"
    if not found:
        return f"{opening} {reached}; no baseline completed, so there is nothing to compare it with."
    text = f"{opening} {reached}: {' and '.join(_claim(one, test, len(found) > 1) for one in found)}."
    failed = [f"{one.failed} of {one.name}" for one in entrants(ledger) if one.failed]
    if failed:
        text += f" Runs that did not complete are left out: {', '.join(failed)}."
    if any(one.seeds == 1 for one in found):
        text += " One seed says nothing of what training draws at random: --set seeds=3 does."
    return text


def _claim(one: Comparison, test: str, several: bool) -> str:
    points = " points" if test.replace("test/", "val/") in PERCENT else ""
    gap = _signed(test, abs(one.difference)).lstrip("+") + points
    interval = f"95% CI {_signed(test, one.low)} to {_signed(test, one.high)}, " if one.low is not None else ""
    tested = "nothing could be tested" if one.p is None else f"p {one.p:.2g}" + (" corrected" if several else "")
    figures = f"{interval}{tested}"
    if one.verdict == NONE:
        return f"no difference from {one.baseline.name} is shown ({_signed(test, one.difference)}{points}, {figures})"
    return f"it is {one.verdict} than {one.baseline.name} by {gap} ({figures})"


def _test(best: Entrant, rival: Entrant, metric: str, folder: Path) -> _Tested:
    seeds = sorted(best.runs.keys() & rival.runs.keys())
    differences = [best.runs[seed].metric(metric) - rival.runs[seed].metric(metric) for seed in seeds]
    right = [[_right(one.runs[seed], folder) for seed in seeds] for one in (best, rival)]
    by_image = None
    if metric == "test/top1" and all(item is not None for both in right for item in both):
        by_image = [100.0 * (mine * 1 - theirs * 1) for mine, theirs in zip(*right, strict=True)]
    mean = statistics.fmean(differences)
    if len(seeds) == 1:
        if by_image is None:
            return _Tested(1, mean, method="one seed, so nothing is tested")
        return _Tested(1, mean, p=_mcnemar(by_image[0]), method="McNemar's exact test over the images")
    errors = [(statistics.variance(differences) / len(seeds), len(seeds) - 1)]
    method = "paired t-test over the seeds"
    if by_image is not None:
        images = sum(by_image) / len(by_image)
        errors.append((float(images.var(ddof=1)) / len(images), len(images) - 1))
        method = "paired t-test over seeds and images"
    return _Tested(len(seeds), mean, *_student(mean, errors), method)


def _student(mean: float, errors: list[tuple[float, int]]) -> tuple[float | None, float | None, float | None]:
    """The 95% interval and the p-value of a mean from its variance's parts and their degrees of freedom.

    A mean that does not vary at all is no proof: a few seeds agree by chance where a metric is coarse.
    """
    from scipy import stats

    variance = sum(part for part, _ in errors)
    if variance == 0:
        return None, None, 1.0 if mean == 0 else None
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in errors)
    half = stats.t.ppf(1 - 0.05 / 2, freedom) * math.sqrt(variance)
    return mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / math.sqrt(variance), freedom))


def _mcnemar(by_image) -> float:
    """The exact test of McNemar (1947) over the images that just one of the two classifies right."""
    from scipy import stats

    mine, theirs = int((by_image > 0).sum()), int((by_image < 0).sum())
    return float(stats.binomtest(mine, mine + theirs, 0.5).pvalue) if mine + theirs else 1.0


def _right(record: TrialRecord, folder: Path):
    """Which test images a finalist classified right, bool [N]; None where its predictions are gone."""
    import numpy as np

    path = Path(folder) / record.trial_id / "test.npz"
    if not path.exists():
        return None
    with np.load(path) as kept:
        return kept["target"] == kept["predicted"]


def _score(entrant: Entrant) -> float:
    return statistics.fmean(run.score for run in entrant.runs.values()) if entrant.runs else -math.inf


def _maximized(entrant: Entrant) -> bool:
    record = next(iter(entrant.runs.values()))
    return record.objectives[record.objective]


def _test_metric(ledger: Ledger) -> str:
    return ledger.objective.replace("val/", "test/")


def _plus_minus(metric: str, found: Summary) -> str:
    text = format_value(metric, found.mean)
    return text if found.deviation is None else f"{text} ± {format_value(metric, found.deviation)}"


def _signed(metric: str, value: float) -> str:
    percent = metric.replace("test/", "val/") in PERCENT
    return f"{value:+.2f}" if percent else f"{value:+.3g}"
