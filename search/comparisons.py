"""What the training-only branches cost and bought, and how the distillers compare, from a study's records."""

import statistics
from typing import TYPE_CHECKING

from search.final import best_record
from search.ledger import COMPLETE, Ledger, TrialRecord
from search.objective import PERCENT, format_value
from search.students import student_of

if TYPE_CHECKING:
    import pandas


def branches(ledger: Ledger) -> str | None:
    """One sentence on projectors and other branches: parameters, FLOPs and time, against the best trial without them.

    Returns:
        None where no complete trial had branches.
    """
    complete = [record for record in ledger.of_role("trial") if record.state == COMPLETE]
    with_, without = ([record for record in complete if _has_branches(record) is has] for has in (True, False))
    if not with_:
        return None
    chosen = best_record(ledger)
    best = chosen if chosen in with_ else max(with_, key=lambda record: record.score)
    without = [record for record in without if student_of(record.config) == student_of(best.config)]
    cost = best.history[0]
    reached = format_value(best.objective, best.value)
    text = (
        f"branches: in training, trial {best.trial_id} has {_count(cost['cost/branch_params'])} parameters and "
        f"{_count(cost['cost/branch_flops'])} FLOPs an image more than the student's own "
        f"{_count(cost['cost/student_params'])} and {_count(cost['cost/student_flops'])}; it reaches {reached}"
    )
    if not without:
        return f"{text}; no complete trial went without, so what they bought is not known"
    other = max(without, key=lambda record: record.score)
    gain = best.score - other.score
    points = f"{format_value(best.objective, gain)} {'points' if best.objective in PERCENT else f'of {best.objective}'}"
    bought = f"bought {points}" if gain > 0 else f"bought nothing ({points})"
    times = [statistics.median(_epoch_seconds(record) for record in group) for group in (with_, without)]
    return (
        f"{text}, the best of {len(without)} without {format_value(other.objective, other.value)}: they {bought} for "
        f"{times[0] / times[1]:.2f} times the time an epoch (one seed each, on the images that chose)"
    )


def distillers_frame(ledger: Ledger) -> "pandas.DataFrame":
    """One row a distiller, best first: its best complete trial, and how many of its trials completed."""
    import pandas

    groups: dict[str, list[TrialRecord]] = {}
    for record in [*ledger.of_role("trial"), *ledger.of_role("baseline")]:
        groups.setdefault(record.config["distiller"], []).append(record)
    rows = []
    for name, records in groups.items():
        complete = [record for record in records if record.state == COMPLETE]
        best = max(complete, key=lambda record: record.score, default=None)
        rows.append(
            {
                "distiller": name,
                ledger.objective: best.value if best else None,
                "best trial": best.trial_id if best else None,
                "complete": len(complete),
                "trials": len(records),
                "seconds": best.seconds if best else None,
            }
        )
    smaller = any(not record.objectives[record.objective] for record in ledger.records.values())
    return pandas.DataFrame(rows).sort_values(ledger.objective, ascending=smaller, ignore_index=True)


def several_distillers(ledger: Ledger) -> bool:
    """Whether the search, its baselines aside, had more than one distiller."""
    return len({record.config["distiller"] for record in ledger.of_role("trial")}) > 1


def _has_branches(record: TrialRecord) -> bool:
    return record.history[0].get("cost/branch_params", 0) > 0


def _epoch_seconds(record: TrialRecord) -> float:
    return record.seconds / record.epoch


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
