"""What a study looks for: one metric that ranks its trials, or several that trade off."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from trainables.errors import InputError

TOP1 = "val/top1"
# Every metric that a trial reports and that may be an objective: its short name, and whether more of it is better.
KNOWN = {
    TOP1: ("top1", True),
    "val/top5": ("top5", True),
    "val/balanced_accuracy": ("balanced_accuracy", True),
    "val/macro_f1": ("macro_f1", True),
    "val/loss": ("nll", False),  # the mean negative log-likelihood
    "val/ece": ("ece", False),
    "val/agreement": ("agreement", True),
    "cost/student_params": ("parameters", False),
    "cost/student_flops": ("flops", False),
    "cost/latency_ms": ("latency", False),
    "time/trained_s": ("training_time", False),
}
COUNTS = {"cost/student_params", "cost/student_flops"}
PERCENT = {"val/top1", "val/top5", "val/balanced_accuracy", "val/macro_f1", "val/ece", "val/agreement"}


@dataclass(frozen=True)
class Objective:
    """A metric by the name it is reported with, and whether more of it is better."""

    metric: str
    maximize: bool

    @property
    def sign(self) -> int:
        """What turns a value so that larger is better."""
        return 1 if self.maximize else -1

    @property
    def direction(self) -> str:
        """Optuna's and Tune's word."""
        return "maximize" if self.maximize else "minimize"


def parse_objectives(written: Iterable[str], metrics: Iterable[str] = ()) -> list[Objective]:
    """Objectives from the names in the settings: a metric or its short name, `min:` or `max:` before it turns it.

    Args:
        written: as `val/top1`, `nll`, `min:latency`, or the function's name of a user's metric.
        metrics: the user's own, `package.module:function` each; they are maximized unless `min:` says otherwise.

    Raises:
        InputError: no metric of that name is reported, one is named twice, or the first does not rank trials.
    """
    shorts = {short: metric for metric, (short, _) in KNOWN.items()}
    own = {f"val/{name.rpartition(':')[2]}" for name in metrics}
    found: dict[str, Objective] = {}
    problems = []
    for text in written:
        prefix, colon, rest = text.partition(":")
        turned, name = (prefix, rest) if colon and prefix in ("min", "max") else (None, text)
        metric = shorts.get(name, name if name in KNOWN else f"val/{name.removeprefix('val/').rpartition(':')[2]}")
        if metric not in KNOWN and metric not in own:
            known = [*shorts, *(one.removeprefix("val/") for one in sorted(own))]
            near = difflib.get_close_matches(name, [*known, *KNOWN], n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            problems.append(f"objectives: no metric '{name}' is reported; {hint}")
            continue
        maximize = turned == "max" if turned else KNOWN.get(metric, ("", True))[1]
        if metric in found:
            problems.append(f"objectives: {metric} is named twice; name it once")
        found[metric] = Objective(metric, maximize)
    if found and not (first := next(iter(found))).startswith("val/"):
        problems.append(f"objectives: {first} is no quality that changes from epoch to epoch; name one of those first")
    if problems:
        raise InputError(problems)
    return list(found.values())


def format_value(metric: str, value: float | None) -> str:
    """A metric's value for people: two decimals of percents, all digits of counts, four of the rest; `-` for none."""
    if value is None:
        return "-"
    if metric in COUNTS:
        return f"{value:,.0f}"
    return f"{value:.2f}" if metric in PERCENT or metric.replace("test/", "val/") in PERCENT else f"{value:.4g}"
