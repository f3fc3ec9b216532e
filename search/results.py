"""What came of a study: tables, one plain sentence, pictures and the best configuration, all from the ledger."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.final import best_record
from search.ledger import COMPLETE, FAILED, PRUNED, Ledger, TrialRecord
from search.objective import PERCENT, TOP1, format_value
from search.students import student_of
from search.tracking_store import as_text, flat_params
from trainables.config import Distillation

if TYPE_CHECKING:
    import optuna
    import pandas
    from rich.console import Console

AHEAD = "over scratch"  # the final table's difference in points
SHARES = ("val/top1", "val/top5", "val/agreement")  # percents that are shares of the images
FEWEST_TRIALS = 4  # an importance from fewer is noise
MARKERS = {COMPLETE: ("o", "#1f77b4"), PRUNED: ("v", "#e0a030"), FAILED: ("x", "#c0392b")}
BASELINE_COLOURS = ("#555555", "#8c564b", "#9467bd", "#17becf")
DECIMALS = dict.fromkeys((*PERCENT, AHEAD, "top1"), 2) | {"val/loss": 4, "seconds": 0}


def _row(record: TrialRecord) -> dict[str, Any]:
    return {
        record.objective: record.value,
        "epochs": record.epoch,
        "seconds": record.seconds,
    }


def best_name(metric: str) -> str:
    """What the best of a metric over a trial's epochs is called: `best/val_top1` of `val/top1`."""
    return f"best/{metric.replace('/', '_')}"


def trials_frame(ledger: Ledger) -> "pandas.DataFrame":
    """One row a trial, in the order they started; `seconds` is what its epochs took."""
    import pandas

    rows = []
    for record in ledger.records.values():
        row = {"trial_id": record.trial_id, "role": record.role, "state": record.state, "reason": record.reason}
        row |= _row(record) | {best_name(record.objective): record.best}
        row |= {name: record.metric(name) for name in record.objectives}
        row |= record.params | flat_params(record.config, Distillation.model_fields)
        row |= {key: value for key, value in (record.history or [{}])[0].items() if key.startswith("cost/")}
        rows.append({key: as_text(value) if isinstance(value, list) else value for key, value in row.items()})
    first = ["trial_id", "role", "state", "reason", "epochs", ledger.objective, best_name(ledger.objective), "seconds"]
    frame = pandas.DataFrame(rows)
    return frame.reindex(columns=first + [column for column in frame.columns if column not in first])


def write_trials_csv(ledger: Ledger, path: Path) -> None:
    trials_frame(ledger).to_csv(path, index=False)


def final_table(ledger: Ledger) -> "pandas.DataFrame":
    """The search's best trial, and the final's where that is another one, beside the baselines.

    One that did not complete says so in its name.
    """
    import pandas

    best, scratch, chosen = ledger.best(), _scratch(ledger), best_record(ledger)
    names = {} if best is None else {best.trial_id: f"trial {best.trial_id} (best)"}
    if chosen is not best:  # the final has its own mind
        names = {best.trial_id: f"trial {best.trial_id} (best here)", chosen.trial_id: f"trial {chosen.trial_id}"}
    rows = []
    for record in [ledger.records[trial_id] for trial_id in names] + ledger.of_role("baseline"):
        name = names.get(record.trial_id, record.trial_id)
        row = {"name": name if record.state == COMPLETE else f"{name} ({record.state})"} | _row(record)
        comparable = scratch is not None and record.state == COMPLETE
        row[AHEAD] = record.value - scratch.value if comparable else None
        last = record.history[-1] if record.history else {}
        row |= {key: last.get(key) for key in ("val/loss", "val/agreement")}
        rows.append(row)
    columns = ["name", ledger.objective, AHEAD, "val/loss", "val/agreement", "epochs", "seconds"]
    return pandas.DataFrame(rows, columns=list(dict.fromkeys(columns)))  # the loss may be the objective


def front_table(front: list[TrialRecord]) -> "pandas.DataFrame":
    """The Pareto front: each trial's objectives and what was searched."""
    import pandas

    rows = []
    for record in front:
        values = {name: format_value(name, record.metric(name)) for name in record.objectives}
        rows.append({"trial": record.trial_id, **values, "searched": in_words(record.params)})
    return pandas.DataFrame(rows)


def _scratch(ledger: Ledger) -> TrialRecord | None:
    record = ledger.records.get("scratch")
    return record if record and record.role == "baseline" and record.state == COMPLETE else None


def in_words(params: dict[str, Any]) -> str:
    """Searched parameters on one line: `eps=1.23  temperature=2`."""
    return "  ".join(f"{key}={_number(value)}" for key, value in params.items())


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else as_text(value)


def simulated_mark(source: str | None) -> str:
    """What stands before every sentence on a simulated study; empty for a real one."""
    return f"SIMULATED (simulate={source}), nothing was trained: " if source else ""


def verdict(ledger: Ledger, holdout_images: int | None) -> str:
    """One honest sentence on whether the search was worth it.

    Args:
        ledger: the study's records.
        holdout_images: the holdout's size, which bounds what a difference can mean; None where it is not known.
    """
    best, scratch, metric = ledger.best(), _scratch(ledger), ledger.objective
    if best is None:
        return "No trial completed, so there is nothing to compare."
    images = f" ({holdout_images} images)" if holdout_images else ""
    if scratch is None:
        return (
            f"The best trial ({best.trial_id}) reaches {'' if metric == TOP1 else f'{metric} '}"
            f"{format_value(metric, best.value)} on the holdout{images}; "
            "the student trained alone did not complete, so there is nothing to compare it with."
        )
    ahead, error = best.score - scratch.score, None
    if metric in SHARES and holdout_images:
        # Both models saw the same images; taking them as independent overstates the error rather than hides it.
        shares = (best.value / 100, scratch.value / 100)
        error = 100 * math.sqrt(sum(share * (1 - share) for share in shares) / holdout_images)
        images = f" ({holdout_images} images, so about ±{error:.1f} points of sampling error)"
    gap = f"{format_value(metric, abs(ahead))} {'points' if metric in PERCENT else f'of {metric}'}"
    other = student_of(best.config) != student_of(scratch.config)
    alone = "the student trained alone" + (" (another student than the trial's)" if other else "")
    if ahead <= 0:
        claim = f"does NOT beat {alone}: {f'it is {gap} behind' if ahead else 'they are equal'}"
    elif error is not None and ahead <= error:
        claim = f"is {gap} {_side(best)} {alone}, which is no more than chance explains,"
    else:
        claim = f"beats {alone} by {gap}"
    complete = sum(record.state == COMPLETE for record in ledger.of_role("trial"))
    chosen = f"it was chosen as the best of {complete} on these same images and " if complete > 1 and ahead > 0 else ""
    return f"The best trial ({best.trial_id}) {claim} on the holdout{images}; {chosen}seeds were not repeated."


def _side(record: TrialRecord) -> str:
    return "above" if record.objectives[record.objective] else "below"


def print_table(console: "Console", frame: "pandas.DataFrame") -> None:
    """A frame on the terminal: text to the left, numbers to the right, `-` where there is none."""
    import pandas
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for column in frame.columns:
        numeric = pandas.api.types.is_numeric_dtype(frame[column])
        table.add_column(str(column), justify="right" if numeric else "left", overflow="fold")
    for row in frame.to_dict("records"):
        table.add_row(*(cell(key, value) for key, value in row.items()))
    console.print(table, markup=False, highlight=False)


def cell(column: str, value: Any) -> str:
    """A table's value as text, by its column; `-` where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        sign = "+" if column == AHEAD else ""
        return f"{value:{sign}.{DECIMALS[column]}f}" if column in DECIMALS else f"{value:.4g}"
    return str(value)


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
    """Each trial's last objective in the order they started, the best so far, and the baselines."""
    figure, axes = _figure(8, 4.5)
    baselines = [record for record in ledger.of_role("baseline") if record.state == COMPLETE]
    records = [(place, record) for place, record in enumerate(ledger.of_role("trial"), 1) if record.state in MARKERS]
    complete = [(place, record.value) for place, record in records if record.state == COMPLETE]
    low, high = view_range(ledger)
    for state, (marker, colour) in MARKERS.items():
        points = [(place, record.value) for place, record in records if record.state == state]
        shown = [point for point in points if point[1] is not None and low <= point[1] <= high]
        if shown:
            axes.scatter(*zip(*shown, strict=True), marker=marker, color=colour, s=36, label=state, zorder=3)
        rest = sorted({place for place, _ in points} - {place for place, _ in shown})
        if rest:  # on the axis itself
            style = {"marker": marker, "color": colour, "s": 36, "label": f"{state}, off the scale"}
            axes.scatter(rest, [0] * len(rest), transform=axes.get_xaxis_transform(), clip_on=False, zorder=4, **style)
    if complete:
        better = max if _maximized(ledger) else min
        best = [better(value for _, value in complete[: count + 1]) for count in range(len(complete))]
        places = [place for place, _ in complete] + [max(place for place, _ in records)]
        axes.step(places, [*best, best[-1]], where="post", color=MARKERS[COMPLETE][1], alpha=0.6, label="best so far")
    for index, record in enumerate(baselines):
        colour = BASELINE_COLOURS[index % len(BASELINE_COLOURS)]
        label = f"{record.trial_id} ({format_value(ledger.objective, record.value)})"
        axes.axhline(record.value, color=colour, linestyle=("--", ":", "-.")[index % 3], linewidth=1.2, label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="trial, in the order they started", ylabel=f"{ledger.objective} at the last epoch")
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


def write_best_yaml(record: TrialRecord, settings: dict[str, Any], path: Path, *, study: str) -> None:
    """Writes settings under their plain names; floats always have a dot, which YAML readers need to see a number.

    Args:
        record: the trial they come from, for the header.
        settings: plain values by name.
        path: the file.
        study: its name, for the header.
    """
    import yaml

    value = f"{record.objective} {format_value(record.objective, record.value)}"
    header = f"# Study {study}, trial {record.trial_id}: {value} after {record.epoch} epochs.\n"
    path.write_text(header + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
