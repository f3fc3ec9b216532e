"""A study's pictures: its history, the importance of what was searched, and the Pareto front."""

import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from search.ledger import COMPLETE, FAILED, PRUNED, Ledger
from search.objective import PERCENT, format_value

if TYPE_CHECKING:
    import optuna

FEWEST_TRIALS = 4  # an importance from fewer is noise
MARKERS = {COMPLETE: ("o", "#1f77b4"), PRUNED: ("v", "#e0a030"), FAILED: ("x", "#c0392b")}
BASELINE_COLOURS = ("#555555", "#8c564b", "#9467bd", "#17becf")


def _figure(width: float, height: float, rows: int = 1):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: no global state, no display, and safe beside other threads.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows)
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_history(ledger: Ledger, path: Path) -> None:
    """Each trial's last objective over the trials' numbers, the best so far, and the baselines."""
    figure, axes = _figure(8, 4.5)
    baselines = [record for record in ledger.of_role("baseline") if record.state == COMPLETE]
    known = [(int(record.trial_id), record) for record in ledger.of_role("trial") if record.state in MARKERS]
    records = sorted(known, key=lambda item: item[0])
    complete = [(number, record.value) for number, record in records if record.state == COMPLETE]
    low, high = view_range(ledger)
    for state, (marker, colour) in MARKERS.items():
        points = [(number, record.value) for number, record in records if record.state == state]
        valued = [point for point in points if point[1] is not None and math.isfinite(point[1])]
        shown = [point for point in valued if low <= point[1] <= high]
        if shown:
            axes.scatter(*zip(*shown, strict=True), marker=marker, color=colour, s=36, label=state, zorder=3)
        off = [number for number, value in valued if not low <= value <= high]
        without = [point[0] for point in points if point not in valued]
        for numbers, words in ((off, "off the scale"), (without, "without a value")):
            if numbers:  # on the axis itself
                style = {"marker": marker, "color": colour, "s": 36, "label": f"{state}, {words}"}
                at = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 4}
                axes.scatter(numbers, [0] * len(numbers), **at, **style)
    if complete:
        best = list(itertools.accumulate((value for _, value in complete), max if _maximized(ledger) else min))
        places = [number for number, _ in complete] + [records[-1][0]]
        axes.step(places, [*best, best[-1]], where="post", color=MARKERS[COMPLETE][1], alpha=0.6, label="best so far")
    for index, record in enumerate(baselines):
        colour = BASELINE_COLOURS[index % len(BASELINE_COLOURS)]
        label = f"{record.trial_id} ({format_value(ledger.objective, record.value)})"
        axes.axhline(record.value, color=colour, linestyle=("--", ":", "-.")[index % 3], linewidth=1.2, label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="trial", ylabel=f"{ledger.objective} at the last epoch")
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def plot_front(ledger: Ledger, path: Path) -> None:
    """The complete trials by the first objective and each other one, those on the Pareto front in red, and the
    baselines."""
    first, *others = next(iter(ledger.records.values())).objectives
    figure = _figure(8, 4.2 * len(others), rows=len(others))[0]
    front = ledger.front()
    for axes, name in zip(figure.axes, others, strict=True):
        for records, colour, label in (
            ([one for one in ledger.complete() if one not in front], MARKERS[COMPLETE][1], "beaten"),
            (front, MARKERS[FAILED][1], "on the front"),
        ):
            axes.scatter(
                [one.metric(name) for one in records], [one.value for one in records], color=colour, label=label, s=36
            )
        for record in ledger.of_role("baseline"):
            if record.state == COMPLETE and not record.of:
                at = (record.metric(name), record.value)
                axes.scatter(*at, marker="D", color=BASELINE_COLOURS[0], s=36)
                axes.annotate(record.trial_id, at, xytext=(5, 5), textcoords="offset points", fontsize=9)
        axes.set(xlabel=name, ylabel=first)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def view_range(ledger: Ledger) -> tuple[float, float]:
    """From where to where the first objective is worth showing: a trial stopped after one epoch lies far off, and drawn
    to scale it would flatten what matters."""
    levels = [record.value for record in ledger.records.values() if record.state == COMPLETE]
    if not levels:
        return -math.inf, math.inf
    least = 1.0 if ledger.objective in PERCENT else 0.05 * max(map(abs, levels))
    margin = max(least, max(levels) - min(levels))
    return min(levels) - margin, max(levels) + margin


def _maximized(ledger: Ledger) -> bool:
    record = next(iter(ledger.records.values()))
    return record.objectives[record.objective]


def plot_importance(study: "optuna.Study", path: Path) -> dict[str, float] | None:
    """Which parameters decided the objective, by PED-ANOVA over the complete trials.

    The evaluator judges a conditional parameter among the trials that have it; the picture names those.

    Returns:
        The parameters' shares, largest first; None where the picture only says why there are none.
    """
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    shares, problem = None, f"{len(complete)} complete trials: importances need at least {FEWEST_TRIALS}"
    if len(complete) >= FEWEST_TRIALS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that less is taken for better is known
                shares = optuna.importance.get_param_importances(study, target=importance_target(study))
            problem = "no parameter varies among the complete trials"
        except Exception as error:  # evaluators fail in many ways on odd studies; the report goes on without
            problem = f"the importances could not be computed: {error}"
    if not shares:
        figure, axes = _figure(8, 2)
        axes.set_axis_off()
        axes.text(0.5, 0.5, problem, ha="center", va="center", wrap=True, transform=axes.transAxes)
        figure.savefig(path, dpi=150)
        return None
    having = {name: sum(name in trial.params for trial in complete) for name in shares}
    figure, axes = _figure(8, 1.6 + 0.34 * len(shares))
    labels = [name if count == len(complete) else f"{name}  (in {count})" for name, count in having.items()]
    bars = axes.barh(labels, list(shares.values()), color=MARKERS[COMPLETE][1])
    axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.12 * max(shares.values())), xlabel="share of the importance (PED-ANOVA)")
    some = sum(count < len(complete) for count in having.values())
    note = f"All {len(shares)} searched parameters, over {len(complete)} complete trials"
    if some:
        note += f"\n{some} conditional (in N): judged among the N trials that have it"
    axes.set_title(note, fontsize=9, loc="left", color="#555555")
    figure.savefig(path, dpi=150)
    return shares


def importance_target(study: "optuna.Study") -> "Callable[[optuna.trial.FrozenTrial], float] | None":
    """What lets Optuna judge parameters by the first of several objectives; less is better in it, as PED-ANOVA asks."""
    import optuna

    if len(study.directions) == 1:
        return None
    sign = -1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1
    return lambda trial: sign * trial.values[0]
