"""A study's pages in MLflow's UI: its description, and views of its runs with columns and charts chosen beforehand.

What the UI reads are tags, as MLflow 3.17's own bundle has them: the share button of its run table writes a view as
`mlflow.sharedViewState.KEY`, and `?viewStateShareKey=KEY` opens it.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from search.tracking.facts import LOGGED, flat_params
from trainables.config import Distillation

HOME = "#/experiments?workflowType=machine_learning"  # the UI opens on its pages for language models otherwise
NOTE = "mlflow.note.content"
VIEW = "mlflow.sharedViewState."
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else the UI guesses, and asks
TRIALS, CHARTS, FINAL = "trials", "charts", "final"  # the views' keys
HERE = "EXPERIMENT_ID"  # stands in the links for MLflow's number of the experiment, until there is one
MOST_PARAMS = 10  # columns; more cannot be read, the UI's Columns button has the others
MOST_SCATTERS, MOST_RUNS = 6, 1000  # in the charts
NARROWEST, LETTER, MARGIN, NAME = 85, 7, 25, 170  # pixels of columns; the names are in their headers
CONTEXT = ("val/loss", "val/agreement")  # metrics beside the objectives
NOT_TRIED = "tags.role != 'study' and tags.role != 'finalist' and tags.role != 'delivery'"


def experiment_tags(
    study: str,
    objectives: Mapping[str, bool],
    drawn: Iterable[Mapping[str, Any]] = (),
    *,
    pair: str = "",
    finalists: int = 0,
) -> dict[str, str]:
    """The tags of a study's experiment: what its page says, and the views that it links to; see `HERE`.

    Args:
        study: its name.
        objectives: whether more is better, by metric; the first ranks the trials.
        drawn: whole configurations that the space gave; what differs among them is what is searched.
        pair: who teaches whom, in words.
        finalists: how many trials are trained again at the end.
    """
    drawn = list(drawn)
    columns, axes = searched_params(drawn), searched_numbers(drawn)
    ranking, more = next(iter(objectives.items()))
    others = [name for name in [*objectives, *CONTEXT] if name != ranking]
    metrics = list(dict.fromkeys([best_of(ranking), ranking, *others]))
    views = {TRIALS: _table(NOT_TRIED, best_of(ranking), more, metrics, columns)}
    if axes:
        views[CHARTS] = _charts(ranking, more, axes)
    if finalists:
        tested = ["test/top1", "test/loss", *(name for name in metrics if name != best_of(ranking))]
        views[FINAL] = _table("tags.role = 'finalist'", "test/top1", True, tested, columns)
    note = _note(study, ranking, more, columns, axes, pair, views)
    return {NOTE: note, **KIND, **{VIEW + key: json.dumps(view) for key, view in views.items()}}


def run_note(verdict: str, best_trial: str | None, commands: Mapping[str, str]) -> dict[str, str]:
    """The tag with the parent run's description.

    Args:
        verdict: the study's sentence.
        best_trial: its id, None where no trial completed.
        commands: what may be done next, a shell command by its purpose.
    """
    best = "No trial completed." if best_trial is None else f"Best: **trial {best_trial}**, the run of that name."
    lines = [verdict, best, "`report.html` among the artifacts is the whole report, `history.png` its first picture."]
    lines += [f"{purpose}:\n\n    {command}" for purpose, command in commands.items()]
    return {NOTE: "\n\n".join(line for line in lines if line)}


def best_of(metric: str) -> str:
    """What the best of a metric over a trial's epochs is called."""
    from search.results import best_name

    return best_name(metric)


def searched_params(drawn: Iterable[Mapping[str, Any]]) -> list[str]:
    """The params that a table of trials should show: those that differ among configurations, at most `MOST_PARAMS`.

    Those of the distillation come first; where there are no configurations to compare, they are all.
    """
    flat = [flat_params(dict(config)) for config in drawn]
    if len(flat) < 2:
        return ["stages", "eps", "temperature", "gt_loss_weight", "kd_loss_weight", "ofa_loss_weight"]
    own = [*Distillation.model_fields, *(name for name in LOGGED if name not in Distillation.model_fields)]
    return [name for name in own if _differs(name, flat)][:MOST_PARAMS]


def searched_numbers(drawn: Iterable[Mapping[str, Any]]) -> list[str]:
    """The params that make axes: those that differ and that are a number in every configuration."""
    flat = [flat_params(dict(config)) for config in drawn]
    names = ["eps_logits", *LOGGED, "stage_count"]
    numbers = [name for name in names if _differs(name, flat) and all(_is_number(one.get(name)) for one in flat)]
    return [name for name in numbers if name != "eps" or "eps_logits" not in numbers][:MOST_PARAMS]


def _differs(name: str, flat: list[dict[str, Any]]) -> bool:
    return len({str(one.get(name)) for one in flat}) > 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _column(kind: str, name: str) -> str:
    """A column as the UI names it."""
    return f"{kind}.`{name}`"


def _view(query: str, order: str, ascending: bool) -> dict[str, Any]:
    """What a view has of the search and of both tabs; the UI takes its own defaults for the rest."""
    return {
        "searchFilter": query,
        "orderByKey": order,
        "orderByAsc": ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "runsHiddenMode": "SHOW_ALL",  # in charts; it would draw the first ten runs
    }


def _table(query: str, order: str, more: bool, metrics: list[str], params: list[str]) -> dict[str, Any]:
    shown = [("tags", "state"), *(("metrics", name) for name in metrics), *(("params", name) for name in params)]
    widths = {_column(kind, name): max(NARROWEST, LETTER * len(name) + MARGIN) for kind, name in shown}
    columns, name = list(widths), _column("attributes", "Run Name")
    return _view(query, _column("metrics", order), not more) | {
        "selectedColumns": columns,
        "columnOrder": [name, *columns],
        "columnWidths": {name: NAME, **widths},
    }


def _charts(ranking: str, more: bool, axes: list[str]) -> dict[str, Any]:
    """The trials in parallel coordinates and a contour plot, and the ranking metric over each searched number."""
    best = {"key": best_of(ranking), "type": "METRIC"}
    params = [{"key": name, "type": "PARAM"} for name in axes]
    wide = [{"type": "PARALLEL", "selectedParams": axes, "selectedMetrics": [best["key"]], "showAllRuns": True}]
    if len(params) > 1:
        wide.append({"type": "CONTOUR", "xaxis": params[0], "yaxis": params[1], "zaxis": best})
    narrow = [{"type": "SCATTER", "xaxis": axis, "yaxis": best} for axis in params[:MOST_SCATTERS]]
    sections, charts = [], []
    for name, cards, columns in (("the search", wide, 1), ("by param", narrow, 3)):
        sections.append({"uuid": name, "name": name, "columns": columns, "display": True, "isReordered": True})
        for number, card in enumerate(cards):
            place = {"uuid": f"{name} {number}", "metricSectionId": name, "deleted": False, "isGenerated": False}
            charts.append({**place, "runsCountToCompare": MOST_RUNS, **card})
    return _view("tags.role = 'trial'", _column("metrics", best["key"]), not more) | {
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,  # else the UI sorts the sections by name, and ours come among its own
    }


def _note(study: str, ranking: str, more: bool, columns: list[str], axes: list[str], pair: str, keys) -> str:
    """The experiment's description, Markdown, where the UI breaks a line at each line's end."""

    def link(text: str, key: str, mode: str = "TABLE") -> str:
        where = f"viewStateShareKey={key}&compareRunsMode={mode}&workflowType=machine_learning"
        return f"[{text}](#/experiments/{HERE}/runs?{where})"

    best, (x, y) = best_of(ranking), [*axes, "a param", "another param"][:2]
    views = {
        TRIALS: link("trials and baselines, the best first", TRIALS),
        CHARTS: link("charts of the search", CHARTS, "CHART"),
        FINAL: link("the final", FINAL),
    }
    return f"""Open {" · ".join(text for key, text in views.items() if key in keys)}

**{study}**{f": {pair}" if pair else ""}

| run | tag `role` | |
|---|---|---|
| {study} | `study` | the parent: settings, verdict; report and plots are its artifacts |
| trial N | `trial` | one configuration of the search |
| baseline NAME | `baseline` | what the search has to beat: `scratch` is the student alone, `kd` classic distillation |
| finalist NAME | `finalist` | a trial or baseline trained again with another seed; judged on the test split too |

- Tag `state`: `complete`; `pruned`, stopped early, so its best says little beside a complete one's; `failed`, with \
its `reason`; `interrupted`, goes on with `--resume`; `running`.
- Metrics, one step an epoch: `train/…` losses in training; `val/…` on the holdout, which ranks trials, and of these \
`val/agreement`, the share of images on which student and teacher agree; `{best}`, the best so far, \
{"more" if more else "less"} is better; `test/…` on the test split; `time/…` and `cost/…` what it took.
- Searched here: {_named(columns)}. `eps_logits` and `stage_count` say `eps` and `stages` in one number each, for plots.

**To compare** open the first link, tick the box in the table's header, press *Compare*. The plots open on the first \
names by alphabet, which may be constants. Parallel coordinates: the params {_named(axes or columns)}, the metric \
`{best}`. Scatter: X `{x}`, Y `{best}`. Contour: X `{x}`, Y `{y}`, Z `{best}`.
"""


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"
