"""What came of a study: tables, one plain sentence and the best configuration, all from the ledger."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.final import best_record
from search.final_sentence import sentence, warmly
from search.finalists import best_baselines
from search.ledger import COMPLETE, Ledger, TrialRecord
from search.objective import PERCENT, TOP1, format_value
from search.statistics import NORMAL_95
from search.students import student_of
from search.tracking.facts import as_text, flat_params
from trainables.config import Distillation

if TYPE_CHECKING:
    import pandas
    from rich.console import Console

AHEAD = "over scratch"  # the final table's difference, in the objective's units
OBJECTIVE = "objective"  # the name under which a frame's `attrs` have the objective
SHARES = ("val/top1", "val/top5", "val/agreement")  # percents that are shares of the images
DECIMALS = dict.fromkeys((*PERCENT, "top1"), 2) | {"val/loss": 4, "seconds": 0}


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
    """One row a trial, in the order they started; `seconds` is what its epochs took.

    Finalists' figures of the test split are its last columns, `test/…`.
    """
    import pandas

    rows, judged = [], {}
    for record in ledger.records.values():
        row = {"trial_id": record.trial_id, "role": record.role, "state": record.state, "reason": record.reason}
        row |= _row(record) | {best_name(record.objective): record.best}
        row |= {name: record.metric(name) for name in record.objectives}
        row |= record.params | flat_params(record.config, Distillation.model_fields)
        row |= {key: value for key, value in (record.history or [{}])[0].items() if key.startswith("cost/")}
        tested = {key: value for entry in record.history for key, value in entry.items() if key.startswith("test/")}
        judged |= tested
        row |= tested
        rows.append({key: as_text(value) if isinstance(value, list) else value for key, value in row.items()})
    first = ["trial_id", "role", "state", "reason", "epochs", ledger.objective, best_name(ledger.objective), "seconds"]
    frame = pandas.DataFrame(rows)
    between = [column for column in frame.columns if column not in first and column not in judged]
    return frame.reindex(columns=[*first, *between, *judged])


def write_trials_csv(ledger: Ledger, path: Path) -> None:
    trials_frame(ledger).to_csv(path, index=False)


def final_table(ledger: Ledger) -> "pandas.DataFrame":
    """The search's best trial, and the final's where that is another one, beside the baselines.

    One that did not complete says so in its name; one with another student than `scratch` has no difference from it.
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
        comparable = comparable and student_of(record.config) == student_of(scratch.config)
        row[AHEAD] = record.value - scratch.value if comparable else None
        last = record.history[-1] if record.history else {}
        row |= {key: last.get(key) for key in ("val/loss", "val/agreement")}
        rows.append(row)
    columns = ["name", ledger.objective, AHEAD, "val/loss", "val/agreement", "epochs", "seconds"]
    frame = pandas.DataFrame(rows, columns=list(dict.fromkeys(columns)))  # the loss may be the objective
    frame.attrs[OBJECTIVE] = ledger.objective
    return frame


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


def lead(
    ledger: Ledger,
    simulated: str | None,
    test_images: int | None,
    holdout_images: int | None,
    searched: dict[str, int | None] | None = None,
) -> str:
    """The sentence that a reader came for: the final's, or the search's where there was no final; with several
    objectives another one on those that it is not about.

    Args:
        ledger: the study's records.
        simulated: where the curves of a simulated study came from, which is said before all else.
        test_images, holdout_images: the splits' sizes; None where they are not known.
        searched: the studies that it started warm from, as `search.resume.began_with`.
    """
    mark = f"SIMULATED (simulate={simulated}), nothing was trained: " if simulated else ""
    text = sentence(ledger, ledger.folder, test_images, searched) or verdict(ledger, holdout_images, searched)
    return mark + text + other_objectives(ledger)


def verdict(ledger: Ledger, holdout_images: int | None, searched: dict[str, int | None] | None = None) -> str:
    """One honest sentence on whether the search was worth it.

    Args:
        ledger: the study's records.
        holdout_images: the holdout's size, which bounds what a difference can mean; None where it is not known.
        searched: as in `lead`.
    """
    best, metric = ledger.best(), ledger.objective
    if best is None:
        return "No trial completed, so there is nothing to compare."
    images = f" ({holdout_images} images)" if holdout_images else ""
    rivals = best_baselines(ledger)
    if not rivals:
        why = "no baseline completed" if ledger.of_role("baseline") else "no baseline was asked for"
        return (
            f"The best trial ({best.trial_id}) reaches {'' if metric == TOP1 else f'{metric} '}"
            f"{format_value(metric, best.value)} on the holdout{images}; {why}, so there is nothing to compare it with."
        )
    errors = [_sampling_error(best, rival, holdout_images) for rival in rivals.values()]
    if all(error is not None for error in errors):
        images = f" ({holdout_images} images, so up to ±{max(errors):.1f} points of sampling error at 95%)"
    claims = [_beside(best, rival, name, error) for (name, rival), error in zip(rivals.items(), errors, strict=True)]
    complete = sum(record.state == COMPLETE for record in ledger.of_role("trial"))
    ahead = any(best.score > rival.score for rival in rivals.values())
    chosen = f"it was chosen as the best of {complete} on these same images and " if complete > 1 and ahead else ""
    claim = " and ".join(claims)
    text = f"The best trial ({best.trial_id}) {claim} on the holdout{images}; {chosen}seeds were not repeated."
    return text + warmly(searched)


def other_objectives(ledger: Ledger) -> str:
    """How many are better in the objectives that did not choose, as a sentence; empty where there is one objective or
    no complete trial."""
    best = best_record(ledger)
    if best is None or len(ledger.objectives) == 1:
        return ""
    begins, front = f" Trial {best.trial_id} was chosen by {ledger.objective} alone", ledger.front()
    if len(front) == 1:
        return f"{begins}; it is the whole Pareto front, so none is better in anything."
    said = []
    for index, name in list(enumerate(ledger.objectives))[1:]:
        count = sum(one.scores[index] > best.scores[index] for one in front)
        said.append(f"{count or 'none'} {'are' if count > 1 else 'is'} better in {name}")
    return f"{begins}; of the Pareto front's {len(front)} trials {' and '.join(said)}."


def _sampling_error(best: TrialRecord, rival: TrialRecord, images: int | None) -> float | None:
    """Half the 95% interval, in points, of the difference of two shares of the images; None for other metrics.

    Both models saw the same images; taking them as independent overstates the error rather than hides it.
    """
    if best.objective not in SHARES or not images:
        return None
    shares = (best.value / 100, rival.value / 100)
    return NORMAL_95 * 100 * math.sqrt(sum(share * (1 - share) for share in shares) / images)


def _beside(best: TrialRecord, rival: TrialRecord, name: str, error: float | None) -> str:
    ahead, metric = best.score - rival.score, best.objective
    gap = f"{format_value(metric, abs(ahead))} {'points' if metric in PERCENT else f'of {metric}'}"
    whom = "the student trained alone" if name == "scratch" else name
    if student_of(best.config) != student_of(rival.config):
        whom += " (another student than the trial's)"
    if ahead <= 0:
        return f"does NOT beat {whom}: {f'it is {gap} behind' if ahead else 'they are equal'}"
    if error is not None and ahead <= error:
        side = "above" if best.objectives[metric] else "below"
        return f"is {gap} {side} {whom}, which is no more than chance explains,"
    return f"beats {whom} by {gap}"


def print_table(console: "Console", frame: "pandas.DataFrame") -> None:
    """A frame on the terminal: text to the left, numbers to the right, `-` where there is none."""
    import pandas
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for column in frame.columns:
        numeric = pandas.api.types.is_numeric_dtype(frame[column])
        table.add_column(str(column), justify="right" if numeric else "left", overflow="fold")
    for row in frame.to_dict("records"):
        table.add_row(*(cell(key, value, frame.attrs.get(OBJECTIVE)) for key, value in row.items()))
    console.print(table, markup=False, highlight=False)


def cell(column: str, value: Any, objective: str | None = None) -> str:
    """A table's value as text, by its column; `-` where there is none. `objective` is what a difference is of."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        if column == AHEAD:
            return f"{'-' if value < 0 else '+'}{format_value(objective or TOP1, abs(value))}"
        return f"{value:.{DECIMALS[column]}f}" if column in DECIMALS else f"{value:.4g}"
    return str(value)


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
