"""A picture of similarities between layers, as in the literature: deep layers up and right, values from 0 to 1."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CELL, SMALLEST, LARGEST = 0.32, 3.0, 7.0  # inches: a layer's row, and the sides of a panel
TICK, WRITTEN = 8.0, 6.5  # points: the largest tick label, and the value in a cell
TIGHTEST = 7.0  # points between tick labels; with more layers, only every second, third, ... is named
LETTER, PROSE = 0.62, 0.54  # width of a letter over its height: of a layer's name at most, of a sentence
WRITES_FROM = 0.28  # inches: narrower cells have colour only
DPI = 200
NOTHING = "#d0d0d0"


@dataclass(frozen=True)
class Panel:
    """One heatmap: `values` [rows, columns], NaN where there is none; the names run from shallow to deep."""

    values: "np.ndarray"
    row_label: str
    rows: list[str]
    column_label: str
    columns: list[str]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        return _side(len(self.columns)), _side(len(self.rows))


def draw_heatmaps(panels: list[Panel], title: list[str], facts: list[str], colour_label: str, path: Path) -> None:
    """Writes the panels side by side, with one colour bar, as PNG.

    Args:
        panels: one or more.
        title: what is compared, in parts that stay whole where the line must break.
        facts: on what, in such parts; smaller, below the title.
        colour_label: what the colours mean.
        path: the file.
    """
    import matplotlib
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = matplotlib.colormaps["magma"].with_extremes(bad=NOTHING)
    figure = Figure()  # without pyplot: no global state and no display
    FigureCanvasAgg(figure)
    lefts = []
    at = 0.0
    for panel in panels:
        at += _names_width(panel.rows)
        lefts.append(at)
        at += panel.size[0]
    height = max(panel.size[1] for panel in panels)
    width = at + 1.0
    figure.set_size_inches(width, height)  # what hangs over is added when it is saved
    for panel, left in zip(panels, lefts, strict=True):
        wide, high = panel.size
        axes = figure.add_axes((left / width, 1 - high / height, wide / width, high / height))
        image = axes.imshow(panel.values, cmap=colours, vmin=0, vmax=1, origin="lower", aspect="auto")
        axes.set_xlabel(panel.column_label, fontsize=10, labelpad=6)
        axes.set_ylabel(panel.row_label, fontsize=10, labelpad=6)
        _name(axes.xaxis, panel.columns, rotation=90)
        _name(axes.yaxis, panel.rows)
        axes.spines[:].set_visible(False)
        if wide / len(panel.columns) >= WRITES_FROM and high / len(panel.rows) >= WRITES_FROM:
            _write_values(axes, panel.values)
    bar_axes = figure.add_axes(((at + 0.18) / width, 1 - panels[-1].size[1] / height, 0.16 / width, min(1, 3 / height)))
    below = any(np.nanmin(panel.values, initial=0) < 0 for panel in panels)
    bar = figure.colorbar(image, cax=bar_axes, extend="min" if below else "neither", ticks=np.linspace(0, 1, 6))
    bar.set_label(colour_label, fontsize=9)
    bar.ax.tick_params(labelsize=TICK, length=2)
    bar.outline.set_visible(False)
    if any(np.isnan(panel.values).any() for panel in panels):
        facts = [*facts, "grey: features that are the same for all images, or not finite"]
    top = 1 + 0.1 / height
    for parts, joint, points, colour in ((facts, "; ", 8.5, "#555555"), (title, " and ", 10.5, "black")):
        lines = _lines(parts, joint, letters=72 * width / (points * PROSE))
        figure.text(0, top, "\n".join(lines), fontsize=points, color=colour, va="bottom")
        top += (len(lines) * points * 1.25 / 72 + 0.06) / height
    figure.savefig(path, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.12, facecolor="white")


def _lines(parts: list[str], joint: str, letters: float) -> list[str]:
    """The parts on as few lines as take them whole."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1] + joint + part) <= letters:
            lines[-1] += joint + part
        else:
            lines[-1] += joint.rstrip()
            lines.append(part)
    return lines


def _side(layers: int) -> float:
    return min(max(CELL * layers, SMALLEST), LARGEST)


def _spacing(layers: int) -> tuple[float, int]:
    """The size of the tick labels in points, and the step between layers that get one."""
    between = 72 * _side(layers) / layers
    step = math.ceil(TIGHTEST / between)
    return min(TICK, 0.9 * between * step), step


def _names_width(names: list[str]) -> float:
    """Inches to the left of a panel for its names and its label."""
    return max(map(len, names)) * _spacing(len(names))[0] * LETTER / 72 + 0.45


def _name(axis, names: list[str], rotation: int = 0) -> None:
    size, step = _spacing(len(names))
    places = [place for place in range(len(names) - 1) if place % step == 0 and place + step <= len(names) - 1]
    places.append(len(names) - 1)  # the logits are always named
    axis.set_ticks(places, [names[place] for place in places], fontsize=size, rotation=rotation)
    axis.set_tick_params(length=2, color="#888888")


def _write_values(axes, values: "np.ndarray") -> None:
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            text = "n/a" if math.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
            colour = "black" if math.isnan(value) or value > 0.6 else "white"
            axes.text(column, row, text, ha="center", va="center", fontsize=WRITTEN, color=colour)
