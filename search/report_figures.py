"""The report's figures: Optuna's own plots where it has them, with what Optuna does not know of, the baselines.

Each function returns None where there is too little to draw; the section then says so.
"""

import itertools
from datetime import datetime
from typing import TYPE_CHECKING

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.trial import TrialState

from search.agreement import Agreement
from search.final import entrants, rank, winner
from search.ledger import COMPLETE, FAILED, PRUNED, Ledger, TrialRecord
from search.objective import format_value
from search.plots import BASELINE_COLOURS, FEWEST_TRIALS, MARKERS, importance_target, view_range
from search.statistics import summary

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STATES = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": FAILED}
GREY, FINALISTS = "#9aa5b1", "#2a7f62"
FONT = {"family": "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif", "size": 13}
FAINTEST = 205.0  # of a line's red, green and blue
NAMED_CURVES = 20  # more trials' curves than this are not named one by one
DRAWN_CURVES = 200  # more than this no page shows and no eye tells apart
JUDGED = 250  # trials that fANOVA is given: four times as many take it four times as long and hardly move the shares


def history(study: optuna.Study, ledger: Ledger) -> "Figure | None":
    """The first objective over the trials, the best so far, those that were stopped, and the baselines."""
    if not _complete(study):
        return None
    figure = visualization.plot_optimization_history(study, **_first(study, ledger))
    for trace in figure.data:
        trace.update(visible=trace.name != "Infeasible Trial")
    figure.data[0].update(name=COMPLETE, marker={"color": MARKERS[COMPLETE][1], "size": 8})
    figure.update_traces(selector={"name": "Best Value"}, name="best so far", line={"shape": "hv"})
    stopped = off_scale(ledger, off=False)
    figure.add_scatter(
        x=[int(one.trial_id) for one in stopped],
        y=[one.value for one in stopped],
        mode="markers",
        name="pruned (its last epoch)",
        marker={"color": MARKERS[PRUNED][1], "symbol": "triangle-down", "size": 9},
    )
    _baseline_lines(figure, ledger)
    figure.update_yaxes(title=ledger.objective)
    return _styled(figure, 420)


def off_scale(ledger: Ledger, off: bool = True) -> list[TrialRecord]:
    """The stopped trials that the history leaves out, to keep what matters large; `off=False`: the others."""
    low, high = view_range(ledger)
    stopped = [one for one in ledger.of_role("trial") if one.state == PRUNED and one.value is not None]
    return [one for one in stopped if off != (low <= one.value <= high)]


def pareto(study: optuna.Study, ledger: Ledger) -> "list[Figure]":
    """The first objective against each other one, the front in red, and the baselines."""
    names = list(next(iter(ledger.records.values())).objectives)
    if not _complete(study):
        return []
    figures = []
    for place, name in enumerate(names[1:], 1):
        figure = visualization.plot_pareto_front(
            study,
            targets=lambda trial, place=place: (trial.values[place], trial.values[0]),
            target_names=[name, names[0]],
        )
        for trace in figure.data:  # Optuna shades them by number, the earliest ones white
            best = trace.marker.colorbar.title.text == "Best Trial"
            colour = MARKERS[FAILED if best else COMPLETE][1]
            label = "on the front" if best else "beaten"
            trace.update(name=label, showlegend=True)
            trace.marker.update(color=colour, showscale=False, size=9, line={"width": 0})
        for colour, record in _coloured_baselines(ledger):
            figure.add_scatter(
                x=[record.metric(name)],
                y=[record.value],
                mode="markers+text",
                text=[record.trial_id],
                textposition="top center",
                marker={"symbol": "diamond", "size": 10, "color": colour},
                name=record.trial_id,
                showlegend=False,
            )
        figures.append(_styled(figure, 420))
    return figures


def parallel(study: optuna.Study, ledger: Ledger) -> "Figure | None":
    """The complete trials through the parameters that all of them have."""
    names = common_parameters(study)
    if len(_complete(study)) < 2 or not names:
        return None
    figure = visualization.plot_parallel_coordinate(study, params=names, **_first(study, ledger))
    for trace in figure.data:
        if trace.line.color:  # Optuna's scale begins with white, where nothing would be seen
            shades = [min(float(part), FAINTEST) for part in trace.line.color[4:-1].split(",")]
            trace.update(
                line={"color": f"rgb({','.join(f'{shade:.0f}' for shade in shades)})", "width": 1.8}, opacity=0.8
            )
    return _styled(figure, 440)


def slices(study: optuna.Study, ledger: Ledger) -> "list[Figure]":
    """The first objective over each searched parameter, darker trials being later ones."""
    complete = _complete(study)
    if len(complete) < 2:
        return []
    figures = []
    for name in dict.fromkeys(name for trial in complete for name in trial.params):
        figure = visualization.plot_slice(study, params=[name], **_first(study, ledger))
        figure.update_traces(marker={"showscale": False, "size": 8})
        _baseline_lines(figure, ledger, named=False)
        figures.append(_styled(figure, 260, legend=False))
    return figures


def importance(study: optuna.Study, ledger: Ledger, evaluator: str) -> "Figure | None":
    """Each parameter's share of what decided the first objective, by `PED-ANOVA` or `fANOVA`."""
    if len(_complete(study)) < FEWEST_TRIALS:
        return None
    if evaluator == "fANOVA":
        judge = optuna.importance.FanovaImportanceEvaluator(seed=0)  # of its forest: a study's figure stays the same
        study = _thinned(study)
    else:
        judge = optuna.importance.PedAnovaImportanceEvaluator()
    target = {"target": importance_target(study), "target_name": ledger.objective}
    figure = visualization.plot_param_importances(study, evaluator=judge, **target)
    figure.update_traces(marker={"color": MARKERS[COMPLETE][1]}, cliponaxis=False)
    figure.update_layout(xaxis_title="share of the importance", yaxis_title=None)
    bars = sum(len(trace.y or ()) for trace in figure.data)
    return _styled(figure, 110 + 28 * bars, legend=False) if bars else None


def curves(ledger: Ledger) -> "Figure | None":
    """The first objective by epoch: the trials, evenly thinned to `DRAWN_CURVES`, the best one drawn strong, and the
    baselines."""
    trials, best = evenly(with_curves(ledger), DRAWN_CURVES), ledger.best()
    if not trials:
        return None
    if best and best not in trials:
        trials.append(best)
    figure = visualization.plot_intermediate_values(_curves_study(trials))
    for trace in figure.data:
        record = trials[int(trace.name.removeprefix("Trial"))]
        strong = record is best
        trace.update(
            name=f"trial {record.trial_id}{' (best)' if strong else ''}",
            line={"color": MARKERS[record.state][1], "width": 3 if strong else 1.2},
            marker={"size": 4, "color": MARKERS[record.state][1]},
            opacity=1 if strong else 0.55,
            showlegend=strong or len(trials) <= NAMED_CURVES,
        )
    for colour, record in _coloured_baselines(ledger):
        points = [(entry["epoch"], entry[record.objective]) for entry in record.history if record.objective in entry]
        figure.add_scatter(
            x=[epoch for epoch, _ in points],
            y=[value for _, value in points],
            mode="lines",
            name=record.trial_id,
            line={"color": colour, "width": 2.5, "dash": "dash"},
        )
    figure.update_layout(xaxis_title="epoch", yaxis_title=ledger.objective)
    return _styled(figure, 440)


def with_curves(ledger: Ledger) -> list[TrialRecord]:
    """The trials that reported an epoch and have ended."""
    return [one for one in ledger.of_role("trial") if one.history and one.state in MARKERS]


def timeline(study: optuna.Study, ledger: Ledger) -> "Figure | None":
    """When each trial, baseline and finalist ran, a bar each."""
    others = [one for one in ledger.records.values() if one.role in ("baseline", "finalist") and one.ended]
    if not others and not study.get_trials(deepcopy=False):
        return None
    figure = visualization.plot_timeline(study)
    for trace in figure.data:
        state = STATES.get(trace.name)
        trace.update(name=state or trace.name.lower(), marker={"color": MARKERS[state][1] if state else GREY})
    first = max((trial.number for trial in study.get_trials(deepcopy=False)), default=-1) + 1
    names = {place: str(place) for place in range(first)}
    for role, colour in (("baseline", GREY), ("finalist", FINALISTS)):
        rows = [(place, one) for place, one in enumerate(others, first) if one.role == role]
        names |= {place: one.trial_id for place, one in rows}
        if rows:
            figure.add_bar(
                base=[datetime.fromtimestamp(one.started).isoformat() for _, one in rows],
                x=[1000 * (one.ended - one.started) for _, one in rows],  # milliseconds
                y=[place for place, _ in rows],
                orientation="h",
                name=role,
                marker={"color": colour},
                hovertemplate="%{customdata}<extra></extra>",
                customdata=[f"{one.trial_id}, {one.state}" for _, one in rows],
            )
    ticks = {"tickvals": list(names), "ticktext": list(names.values())} if len(names) <= 60 else {}
    figure.update_layout(xaxis_title=None, yaxis={"title": None, "autorange": "reversed", **ticks}, bargap=0.25)
    return _styled(figure, min(900, 130 + 19 * len(names)))


def rung_agreement(found: list[Agreement], rungs: list[int]) -> "Figure | None":
    """The rank correlation with the end by epoch, with its 95% interval; the rungs are marked."""
    known = [one for one in found if one.correlation is not None]
    if not known:
        return None
    banded = [one for one in known if one.low is not None]
    figure = go.Figure()
    figure.add_scatter(
        x=[one.epoch for one in banded] + [one.epoch for one in reversed(banded)],
        y=[one.high for one in banded] + [one.low for one in reversed(banded)],
        mode="lines",
        fill="toself",
        fillcolor="rgba(31,119,180,.13)",
        line={"width": 0},
        hoverinfo="skip",
        name="95% interval",
    )
    figure.add_scatter(
        x=[one.epoch for one in known],
        y=[one.correlation for one in known],
        mode="lines+markers",
        line={"color": MARKERS[COMPLETE][1]},
        name="Spearman's ρ with the last epoch",
    )
    for rung in rungs:
        figure.add_vline(x=rung, line={"color": GREY, "dash": "dot", "width": 1.2}, annotation_text="rung")
    figure.update_layout(xaxis_title="epoch", yaxis={"title": "ρ", "range": [-1.05, 1.08]})
    return _styled(figure, 320)


def final(ledger: Ledger) -> "Figure | None":
    """Each entrant of the final on the test split: every seed, the mean and its 95% interval."""
    metric = ledger.objective.replace("val/", "test/")
    found = [(one, one.values(metric)) for one in entrants(ledger) if one.runs]
    found = [(one, values) for one, values in found if None not in values]
    if not found:
        return None
    best, figure = winner(ledger), go.Figure()
    found.sort(key=lambda item: (item[0] != best, item[0].baseline is not None, -rank(item[0])[-1]))
    every = [value for _, values in found for value in values]
    for one, values in reversed(found):
        summed = summary(values)
        colour = GREY if one.baseline else MARKERS[COMPLETE][1] if one == best else "#8fb8d8"
        name = f"{one.name} (best)" if one == best else one.name
        half = 0.0 if summed.low is None else summed.mean - summed.low
        figure.add_scatter(
            x=[summed.mean],
            y=[name],
            error_x={"array": [half], "thickness": 2, "width": 7},
            mode="markers",
            marker={"color": colour, "size": 13},
            hovertemplate=f"{name}: {format_value(metric, summed.mean)} over {summed.count} seed(s)<extra></extra>",
        )
        figure.add_scatter(
            x=values,
            y=[name] * len(values),
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 12, "color": colour, "line": {"width": 1.5}},
            hovertemplate="%{x:.4g}<extra></extra>",
        )
    margin = 0.6 * (max(every) - min(every)) or 0.02 * abs(every[0]) or 1.0
    figure.update_xaxes(title=metric, range=[min(every) - margin, max(every) + margin])  # intervals of few seeds leave
    return _styled(figure, 110 + 42 * len(found), legend=False)


def common_parameters(study: optuna.Study) -> list[str]:
    """The parameters that every complete trial has, in the order they are suggested."""
    complete = _complete(study)
    return [name for name in complete[0].params if all(name in trial.params for trial in complete)] if complete else []


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def evenly(items: list, most: int) -> list:
    """All of them, or so many at equal distances, the first one with them."""
    return [items[place * len(items) // most] for place in range(most)] if len(items) > most else list(items)


def _thinned(study: optuna.Study) -> optuna.Study:
    """The study, or one in memory with `JUDGED` of its complete trials."""
    complete = _complete(study)
    if len(complete) <= JUDGED:
        return study
    fewer = optuna.create_study(directions=study.directions)
    fewer.add_trials(evenly(complete, JUDGED))
    return fewer


def _first(study: optuna.Study, ledger: Ledger) -> dict:
    """What lets Optuna's plots draw the first objective where there are several."""
    several = len(study.directions) > 1
    return {"target": (lambda trial: trial.values[0]) if several else None, "target_name": ledger.objective}


def _curves_study(trials: list[TrialRecord]) -> optuna.Study:
    """A study in memory with the records' first objective by epoch: Optuna keeps none of studies with several."""
    study = optuna.create_study()
    for record in trials:
        values = {int(entry["epoch"]): entry[record.objective] for entry in record.history if record.objective in entry}
        study.add_trial(optuna.trial.create_trial(state=TrialState.PRUNED, intermediate_values=values))
    return study


def _baselines(ledger: Ledger) -> list[TrialRecord]:
    """The complete ones that stand for themselves, not those of their own small searches."""
    return [one for one in ledger.of_role("baseline") if one.state == COMPLETE and not one.of]


def _coloured_baselines(ledger: Ledger) -> list[tuple[str, TrialRecord]]:
    """Each with a colour; those beyond the last colour have the first ones again."""
    return list(zip(itertools.cycle(BASELINE_COLOURS), _baselines(ledger), strict=False))


def _baseline_lines(figure: "Figure", ledger: Ledger, named: bool = True) -> None:
    for colour, record in _coloured_baselines(ledger):
        text = f"{record.trial_id} {format_value(ledger.objective, record.value)}"
        words = {"annotation_text": text, "annotation_font_color": colour} if named else {}
        figure.add_hline(y=record.value, line={"color": colour, "dash": "dash", "width": 1.2}, **words)


def _styled(figure: "Figure", height: int, legend: bool = True) -> "Figure":
    """One look for all: no title, as the section has one, and a legend above."""
    figure.update_layout(
        template="plotly_white",
        title=None,
        width=None,
        height=height,
        font=FONT,
        margin={"l": 60, "r": 24, "t": 44 if legend else 20, "b": 48},
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": None},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#c3cad2", "activecolor": GREY},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure
