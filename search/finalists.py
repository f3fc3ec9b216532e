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


def rivals(ledger: Ledger) -> dict[str, list[TrialRecord]]:
    """By its name each baseline's complete records for the final: as it was given, and the best of its own search.

    Both, since the search has one seed, which may choose the worse of them.
    """
    complete = [record for record in ledger.of_role("baseline") if record.state == COMPLETE]
    found = {}
    for name in dict.fromkeys(record.of or record.trial_id for record in complete):
        own = sorted((one for one in complete if one.of == name), key=lambda one: one.score, reverse=True)
        found[name] = [one for one in complete if one.trial_id == name] + own[:1]
    return found


def best_baselines(ledger: Ledger) -> dict[str, TrialRecord]:
    """Each baseline's best complete record by its name: of its own small search, where there was one."""
    return {name: max(records, key=lambda record: record.score) for name, records in rivals(ledger).items()}


def final_records(
    ledger: Ledger,
    settings: Settings,
    with_student: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda config, other: config,
) -> list[TrialRecord]:
    """The runs of the final that are still to be made, seed by seed, so that those of one seed can be compared early.

    All of them have the search's epochs and data, other seeds than the search had, and a learning-rate schedule of full
    length. Each student among the finalists has baselines of its own, so that a space that searches the student does
    not compare two of them; of a tuned one both of `rivals` run, and their means choose (`search.final.entrants`). A
    run that an earlier session left off goes on; one that failed is tried again.

    Args:
        with_student: gives a configuration (the first) the student of another one (the second).
    """
    trials = chosen(ledger, settings.finalists)
    entrants = [(record.trial_id, record, record.config) for record in trials]
    baselines = [record for records in rivals(ledger).values() for record in records]
    for student, owner in {student_of(record.config): record for record in reversed(trials)}.items():
        for record in baselines:
            if student_of(record.config) == student:
                entrants.append((record.trial_id, record, record.config))
            else:
                config = with_student(record.config, owner.config)
                entrants.append((f"{record.trial_id}-as-{owner.trial_id}", record, config))
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
