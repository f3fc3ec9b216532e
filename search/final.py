"""What the final showed: means with error bars, and a test against each baseline.

The winner has the best mean on the holdout, so that the test split chooses nothing; but a seed that suits a finalist
lifts both. P-values are therefore corrected by Holm's method for all pairs of a finalist and a baseline, as any
finalist might have been the winner. Intervals are not corrected. A finalist is compared with the baselines of its own
student, where a space searches the student.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.ledger import COMPLETE, FAILED, Ledger, TrialRecord
from search.objective import COUNTS, PERCENT, format_value
from search.statistics import Summary, Tested, holm, paired, pooled, summary
from search.students import student_of

if TYPE_CHECKING:
    import pandas

LEVEL = 0.05  # a difference is shown where the corrected p-value is below
BETTER, WORSE, NONE = "better", "worse", "no difference shown"


@dataclass(frozen=True)
class Entrant:
    """A trial or a baseline in the final, with its complete runs by seed."""

    of: str  # the record whose configuration it is
    baseline: str | None  # its name, None for a trial
    runs: dict[int, TrialRecord]
    failed: int = 0  # runs that failed
    unfinished: int = 0  # runs that are under way or were cut off
    most: int = 1  # the seeds of the one that has most of them
    student: str = ""  # which one it has, as text that equals another's where the students do
    like: str = ""  # a baseline with another student than in the search: the trial that has that student

    @property
    def name(self) -> str:
        """As people call it: `trial 7`, `kd`, `kd (tuned: kd-3)`, or `kd (student of trial 7)`."""
        if self.baseline is None:
            return f"trial {self.of}"
        words = [f"tuned: {self.of}"] * (self.of != self.baseline) + [f"student of trial {self.like}"] * bool(self.like)
        return self.baseline + (f" ({', '.join(words)})" if words else "")

    @property
    def sound(self) -> bool:
        """Whether its mean may win: none of its runs failed, and it has at least half as many seeds as any other."""
        return not self.failed and 2 * len(self.runs) >= self.most

    def values(self, metric: str) -> list[float]:
        """The metric of each run, by seed."""
        return [run.metric(metric) for _, run in sorted(self.runs.items())]


@dataclass(frozen=True)
class Comparison(Tested):
    """The winner beside a baseline on the test split; the difference is winner minus baseline, in the metric's units.

    Attributes:
        p: corrected for all pairs of a finalist and a baseline, the interval is not.
        baseline: the rival.
        verdict: BETTER, WORSE (the winner) or NONE.
        pairs: how many pairs there were.
        partly: one of the two has runs with other seeds too, so that the difference is not that of their means.
    """

    baseline: Entrant | None = None
    verdict: str = NONE
    pairs: int = 1
    partly: bool = False


def entrants(ledger: Ledger) -> list[Entrant]:
    """All that ran in the final, trials first; of a baseline with several configurations the best on the holdout."""
    groups: dict[tuple[str, str], list[TrialRecord]] = {}
    for record in ledger.of_role("finalist"):
        if record.of in ledger.records:
            groups.setdefault((record.of, student_of(record.config)), []).append(record)
    owners = {student: of for (of, student) in reversed(groups) if ledger.records[of].role == "trial"}
    trials: list[Entrant] = []
    baselines: dict[tuple[str, str], Entrant] = {}
    complete = {key: _complete(records, tested_metric(ledger)) for key, records in groups.items()}
    most = max(map(len, complete.values()), default=0)
    for (of, student), records in groups.items():
        source, runs = ledger.records[of], complete[of, student]
        failed = sum(one.state == FAILED for one in records)
        counts = {"failed": failed, "unfinished": len(records) - len(runs) - failed, "most": most}
        if source.role == "trial":
            trials.append(Entrant(of, None, runs, **counts, student=student))
            continue
        like = "" if student == student_of(source.config) else owners.get(student, "")
        found = Entrant(of, source.of or of, runs, **counts, student=student, like=like)
        rival = baselines.get((found.baseline, student))
        if rival is None or rank(found) > rank(rival):
            baselines[found.baseline, student] = found
    return trials + list(baselines.values())


def _complete(records: list[TrialRecord], test: str) -> dict[int, TrialRecord]:
    """By seed the runs that count: to their end, and judged."""
    whole = [one for one in records if one.state == COMPLETE and one.metric(test) is not None]
    return {record.config["seed"]: record for record in whole}


def winner(ledger: Ledger) -> Entrant | None:
    """The trial with the best mean of the first objective on the holdout, of those that are sound; None without one."""
    return max(trials_of(ledger), key=rank, default=None)


def trials_of(ledger: Ledger) -> list[Entrant]:
    """The final's trials that have a complete run."""
    return [entrant for entrant in entrants(ledger) if entrant.baseline is None and entrant.runs]


def best_record(ledger: Ledger) -> TrialRecord | None:
    """The trial that a study recommends: the final's winner, or the best of the search where there was no final."""
    best = winner(ledger)
    return ledger.best() if best is None else ledger.records[best.of]


def winners_figures(ledger: Ledger) -> dict[str, list]:
    """The winner's seeds and, by metric, its runs' figures on the holdout and the test split; {} without a final."""
    best = winner(ledger)
    if best is None:
        return {}
    return {"seeds": sorted(best.runs)} | {
        name: best.values(name) for name in (ledger.objective, tested_metric(ledger))
    }


def comparisons(ledger: Ledger, folder: Path) -> list[Comparison]:
    """The winner beside each baseline that has a run with a seed of the winner's.

    Args:
        folder: where the records' folders are, for the predictions.
    """
    best = winner(ledger)
    if best is None:
        return []
    everyone, metric = entrants(ledger), tested_metric(ledger)
    pairs = [
        (one, rival)
        for one in everyone
        for rival in everyone
        if one.baseline is None and rival.baseline is not None and one.student == rival.student
        if one.runs.keys() & rival.runs.keys()
    ]
    spread = _spread(everyone, metric)
    tested = [_test(one, rival, metric, folder, spread) for one, rival in pairs]
    sign = 1 if _maximized(best) else -1
    found = []
    for (trial, rival), one, p in zip(pairs, tested, holm([one.p for one in tested]), strict=True):
        if trial.of == best.of:
            shown = p is not None and p < LEVEL
            verdict = NONE if not shown else BETTER if sign * one.difference > 0 else WORSE
            partly = one.seeds < max(len(trial.runs), len(rival.runs))
            figures = {**vars(one), "p": p}
            found.append(Comparison(**figures, baseline=rival, verdict=verdict, pairs=len(pairs), partly=partly))
    return found


def final_frame(ledger: Ledger, folder: Path) -> "pandas.DataFrame":
    """One row an entrant, the winner first: means with deviations, the test mean's interval, and its comparison.

    A column that nobody has, as the interval is with one seed, is left out.
    """
    import pandas

    best, metric, test = winner(ledger), ledger.objective, tested_metric(ledger)
    beside = {(one.baseline.of, one.baseline.student): one for one in comparisons(ledger, folder)}
    order = sorted(entrants(ledger), key=lambda one: (one != best, one.baseline is not None, -rank(one)[-1]))
    others = [name for name in ledger.objectives if name != metric]
    rows = []
    for one in order:
        row = {"name": f"{one.name} (best)" if one == best else one.name, "seeds": len(one.runs)}
        for name in (metric, test, *others):
            values = [value for value in one.values(name) if value is not None]
            row[name] = plus_minus(name, summary(values)) if values else "-"
        if one.runs and (found := summary(one.values(test))).deviation:
            row["95% CI"] = f"{format_value(test, found.low)} to {format_value(test, found.high)}"
        if compared := beside.get((one.of, one.student)):
            common = f" over {count_seeds(compared.seeds)}" if compared.partly else ""
            row["best is"] = f"{signed(test, compared.difference)}{common}, {compared.verdict}"
            row["p"] = compared.p
        for count, word in ((one.failed, "failed"), (one.unfinished, "not complete")):
            row["name"] += f", {count} {word}" if count else ""
        rows.append(row)
    columns = ["name", "seeds", metric, test, "95% CI", "best is", "p", *others]
    frame = pandas.DataFrame(rows, columns=[one for one in columns if any(one in row for row in rows)])
    return frame.astype(object).where(lambda cells: cells.notna(), None)


def _spread(everyone: list[Entrant], metric: str) -> tuple[float, int] | None:
    """How much the difference of two entrants moves with the seed, over all that have the most seeds."""
    most = max(len(one.runs) for one in everyone)
    whole = [one for one in everyone if len(one.runs) == most]
    same = [one for one in whole if one.runs.keys() == whole[0].runs.keys()]
    return pooled([one.values(metric) for one in same])


def _test(one: Entrant, rival: Entrant, metric: str, folder: Path, spread: tuple[float, int] | None) -> Tested:
    seeds = sorted(one.runs.keys() & rival.runs.keys())
    differences = [one.runs[seed].metric(metric) - rival.runs[seed].metric(metric) for seed in seeds]
    right = [[_right(side.runs[seed], folder) for seed in seeds] for side in (one, rival)]
    by_image = None
    if metric == "test/top1" and all(item is not None for both in right for item in both):
        by_image = [100.0 * (mine * 1 - theirs * 1) for mine, theirs in zip(*right, strict=True)]
    return paired(differences, by_image, spread)


def _right(record: TrialRecord, folder: Path):
    """Which test images a finalist classified right, bool [N]; None where its predictions are gone."""
    import numpy as np

    path = Path(folder) / record.trial_id / "test.npz"
    if not path.exists():
        return None
    with np.load(path) as kept:
        return kept["target"] == kept["predicted"]


def rank(entrant: Entrant) -> tuple[bool, int, float]:
    """Larger is better: first the sound ones, by their means; of the others the mean over a lucky seed would flatter,
    so that more seeds come first."""
    scores = [run.score for run in entrant.runs.values()]
    return entrant.sound, 0 if entrant.sound else len(scores), statistics.fmean(scores) if scores else -math.inf


def _maximized(entrant: Entrant) -> bool:
    record = next(iter(entrant.runs.values()))
    return record.objectives[record.objective]


def tested_metric(ledger: Ledger) -> str:
    """The metric that ranks the study's trials, on the test split."""
    return ledger.objective.replace("val/", "test/")


def plus_minus(metric: str, found: Summary) -> str:
    """A mean with its deviation, where there is one."""
    text = format_value(metric, found.mean)
    return text if found.deviation is None or metric in COUNTS else f"{text} ± {format_value(metric, found.deviation)}"


def count_seeds(count: int) -> str:
    """How many, in words."""
    return f"{count} seed{'s' * (count != 1)}"


def signed(metric: str, value: float) -> str:
    """A difference of a metric, with its sign."""
    percent = metric.replace("test/", "val/") in PERCENT
    return f"{value:+.2f}" if percent else f"{value:+.3g}"
