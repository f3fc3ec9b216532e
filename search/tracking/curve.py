"""A trial's learning curve as a small picture, for its run in MLflow."""

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from search.ledger import FAILED, PRUNED, TrialRecord
from search.objective import PERCENT, TOP1, format_value
from search.results import in_words

CURVE = "learning_curve.png"
SIZE = (9.0, 4.0)  # inches of 100 pixels
AGREEMENT = "val/agreement"
LOSS = "train/loss"
PARTS = ("gt", "kd", "ofa")  # of the loss, which have their colours in every picture
COLOURS = ("#222222", "#1f77b4", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#17becf")
STATES = {PRUNED: "#b07d1a", FAILED: "#c0392b"}
TITLE = {"loc": "left", "fontsize": 9, "color": "#555555", "y": 1.02}  # with a y none is looked for
LONGEST_LINE = 130  # characters over the picture
FARTHEST = 50.0  # a loss that falls by more is drawn on a logarithmic scale

Points = list[tuple[int, float]]


def draw_curve(record: TrialRecord, path: Path) -> bool:
    """Draws a trial's training losses, and beside them what ranks it, with the best epoch marked.

    Where the objective is no percentage, `val/top1` and `val/agreement` have a scale of their own. An epoch whose value
    is not finite is a cross at the upper edge. One picture is drawn at a time: they share a canvas.

    Args:
        record: the trial's, ended or not.
        path: the PNG's, of 900 x 400 pixels; its folder stands.

    Returns:
        False where no epoch was reported; nothing is written then.
    """
    if not record.history:
        return False
    import numpy as np

    with np.errstate(over="ignore"):  # a loss of 1e300 leaves no room for margins
        figure = _drawn(record)
        figure.savefig(path, pil_kwargs={"compress_level": 4})
    return True


def _drawn(record: TrialRecord) -> Any:
    figure, (left, right) = _figure()
    losses = _losses(record)
    _legend(left, _draw(left, [(name, _points(record, name), colour) for name, colour in losses.items()]))
    values = [value for name in losses for _, value in _points(record, name) if 0 < value < math.inf]
    if values and max(values) > FARTHEST * min(values):
        left.set_yscale("log")
    left.set_title("training losses", **TITLE)
    _draw_quality(right, record)
    for axes in (left, right):
        axes.set_xlabel("epoch", fontsize=8)
        axes.set_xlim(*_limits(record))
        axes.xaxis.get_major_locator().set_params(integer=True)
    _head(figure, record)
    return figure


@cache
def _canvas() -> Any:
    """The figure of all pictures: fonts and canvas are made once."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=100)
    FigureCanvasAgg(figure)
    return figure


def _figure() -> tuple[Any, tuple[Any, Any]]:
    figure = _canvas()
    figure.clear()
    # Placed by hand: matplotlib's own layout draws everything once more.
    axes = figure.add_axes((0.06, 0.12, 0.40, 0.62)), figure.add_axes((0.54, 0.12, 0.40, 0.62))
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#eeeeee")
        one.set_axisbelow(True)
        one.tick_params(labelsize=8)
    return figure, axes


def _head(figure: Any, record: TrialRecord) -> None:
    what = record.role if record.trial_id == record.role else f"{record.role} {record.trial_id}"
    told = record.value is not None
    value = f"   {record.objective} {format_value(record.objective, record.value)}" if told else ""
    plain = {"parse_math": False, "ha": "left", "va": "top"}  # a reason may have dollars
    figure.text(0.06, 0.97, f"{what}: {record.state}{value}", **plain, fontsize=11, weight="bold")
    lines = [(record.reason, STATES.get(record.state, "#555555")), (in_words(record.params), "#555555")]
    lines = [(short(text), colour) for text, colour in lines if text]
    for number, (text, colour) in enumerate(lines):
        figure.text(0.06, 0.90 - 0.047 * number, text, **plain, fontsize=8, color=colour)


def short(text: str) -> str:
    """A text on one line, cut where it is too long for the picture."""
    line = "  ".join(text.splitlines())
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def _losses(record: TrialRecord) -> dict[str, str]:
    """The colours of the losses by name, without those that are 0 throughout."""
    names = {name for entry in record.history for name in entry if name == LOSS or name.startswith(f"{LOSS}_")}
    others = sorted(names - {LOSS, *(f"{LOSS}_{part}" for part in PARTS)})
    order = [LOSS, *(f"{LOSS}_{part}" for part in PARTS), *others]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(order)}
    return {name: colours[name] for name in order if any(entry.get(name) for entry in record.history)}


def _draw_quality(axes: Any, record: TrialRecord) -> None:
    objective = record.objective
    percents = [(TOP1, COLOURS[1]), (AGREEMENT, COLOURS[2])]
    first = (objective, dict(percents).get(objective, COLOURS[3]))
    others = [(name, colour) for name, colour in percents if name != objective]
    curves = [(name, _points(record, name), colour) for name, colour in (first, *others)]
    if objective in PERCENT:
        shown = _draw(axes, curves)
        axes.set_title("holdout, %", **TITLE)
    else:
        shown = _draw(axes, curves[:1])
        axes.set_title(f"holdout: {objective}, and in % (dashed)", **TITLE)
        if any(points for _, points, _ in curves[1:]):
            beside = axes.twinx()
            beside.spines["top"].set_visible(False)
            beside.tick_params(labelsize=8)
            shown += _draw(beside, curves[1:], style="--")
    finite = [(epoch, value) for epoch, value in _points(record, objective) if math.isfinite(value)]
    if finite:
        best = (max if record.objectives[objective] else min)(finite, key=lambda point: point[1])
        words = f"best {format_value(objective, best[1])} in epoch {best[0]}"
        shown += axes.plot(*best, marker="*", markersize=11, color="#e0a030", linestyle="", label=words, zorder=5)
    _legend(axes, shown)


def _draw(axes: Any, curves: Iterable[tuple[str, Points, str]], style: str = "-") -> list[Any]:
    """Draws curves, with a gap where a value is not finite; their lines, for a legend."""
    lines = []
    for name, points, colour in curves:
        if not points:
            continue
        epochs = [epoch for epoch, _ in points]
        values = [value if math.isfinite(value) else math.nan for _, value in points]
        marker = "o" if len(points) < 16 or any(map(math.isnan, values)) else None  # one alone makes no line
        lines += axes.plot(epochs, values, style, color=colour, label=name, marker=marker, markersize=3, linewidth=1.4)
        if lost := [epoch for epoch, value in zip(epochs, values, strict=True) if math.isnan(value)]:
            at = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            lines += axes.plot(lost, [1.0] * len(lost), "x", color=colour, label=f"{name} is not finite", **at)
    return lines


def _legend(axes: Any, lines: list[Any]) -> None:
    if lines:
        axes.legend(handles=lines, loc="best", fontsize=7, framealpha=0.7, edgecolor="none")
    else:
        axes.text(0.5, 0.5, "none reported", ha="center", va="center", color="#888888", transform=axes.transAxes)


def _points(record: TrialRecord, name: str) -> Points:
    return [(int(entry["epoch"]), float(entry[name])) for entry in record.history if entry.get(name) is not None]


def _limits(record: TrialRecord) -> tuple[float, float]:
    """All epochs that it was to have: where it was stopped is seen."""
    last = max(record.config["epochs"], record.epoch)
    return 1 - 0.03 * last, last + 0.03 * last
