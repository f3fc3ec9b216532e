"""The final: the best trials and the baselines trained again over seeds, in full, and judged on the test split.

The search chose its best on the holdout and with one seed, so its figure flatters it; these are the ones to believe.
"""

from collections.abc import Callable
from typing import Any

from search.ledger import COMPLETE, RUNNING, Ledger, TrialRecord
from search.settings import Settings
from search.students import student_of

FINALIST = "finalist"


def chosen(ledger: Ledger, count: int) -> list[TrialRecord]:
    """The trials of the final, best first: with one objective the best by it; with several, those of the Pareto front
    that are best by the first, or all of a smaller front."""
    distinct: list[TrialRecord] = []
    for record in sorted(ledger.front() or ledger.complete(), key=lambda record: record.score, reverse=True):
        if all(record.config != other.config for other in distinct):
            distinct.append(record)
    return distinct[:count]


def best_baselines(ledger: Ledger) -> dict[str, TrialRecord]:
    """Each baseline's best complete record by its name: of its own small search, where there was one."""
    best: dict[str, TrialRecord] = {}
    for record in ledger.of_role("baseline"):
        name = record.of or record.trial_id
        if record.state == COMPLETE and (name not in best or record.score > best[name].score):
            best[name] = record
    return best


def final_records(
    ledger: Ledger,
    settings: Settings,
    with_student: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda config, other: config,
) -> list[TrialRecord]:
    """The runs of the final that are still to be made, seed by seed, so that those of one seed can be compared early.

    All of them have the search's epochs and data, other seeds than the search had, and a learning-rate schedule of full
    length. Each student among the finalists has baselines of its own, so that a space that searches the student does
    not compare two of them. A run that an earlier session left off goes on; one that failed is tried again.

    Args:
        with_student: gives a configuration (the first) the student of another one (the second).
    """
    trials = chosen(ledger, settings.finalists)
    entrants = [(record.trial_id, record, record.config) for record in trials]
    baselines = best_baselines(ledger)
    for student, owner in {student_of(record.config): record for record in reversed(trials)}.items():
        for name, record in baselines.items():
            if student_of(record.config) == student:
                entrants.append((record.trial_id, record, record.config))
            else:
                entrants.append((f"{name}-as-{owner.trial_id}", record, with_student(record.config, owner.config)))
    records = []
    for seed in range(settings.seed + 1, settings.seed + 1 + settings.seeds):
        for name, entrant, whole in entrants:
            trial_id = f"{name}-seed{seed}"
            known = ledger.records.get(trial_id)
            if known is None or known.state not in (RUNNING, COMPLETE):
                config = {**whole, "seed": seed, "sched_restarts": []}
                known = TrialRecord(trial_id, FINALIST, config, entrant.params, entrant.objectives, of=entrant.trial_id)
            if known.state != COMPLETE:
                records.append(known)
    return records
