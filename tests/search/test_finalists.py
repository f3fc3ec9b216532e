"""Who is in the final, and what is left of it after an interruption."""

import pytest

from search.contradictions import final_runs
from search.finalists import best_baselines, chosen, final_records, rivals
from search.ledger import Ledger, TrialRecord
from search.settings import resolve
from search.study import Scale, Study

BOTH = {"val/top1": True, "cost/student_params": False}


def settings(**fields):
    study = Study(space=lambda trial: {}, scales={"embedded": Scale(teacher="t", student="s", **fields)})
    return resolve(study, {"name": "n", "space": "s.py"}, [])


def add(ledger, trial_id, value, *, role="trial", epochs=2, state=None, of="", params=None, eps=None, objectives=None):
    config = {"epochs": epochs, "seed": 0, "eps": eps if eps is not None else trial_id, "sched_restarts": [1]}
    record = TrialRecord(trial_id, role, config, {"eps": 1.0}, objectives or {"val/top1": True}, of=of)
    for epoch in range(1, (1 if state == "pruned" else epochs) + 1):
        record.add(
            {"epoch": epoch, "val/top1": value, **({"cost/student_params": params} if epoch == 1 and params else {})}
        )
    if state != "running":
        record.finish("it broke" if state == "failed" else None)
    ledger.save(record)
    return record


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


def test_the_best_distinct_complete_trials_are_chosen(ledger):
    for trial_id, value, state in (("0", 90, None), ("1", 99, "pruned"), ("2", 95, None), ("3", 98, "failed")):
        add(ledger, trial_id, value, state=state)
    add(ledger, "4", 94.0, eps="2")  # the same configuration as trial 2
    add(ledger, "5", 91.0)
    assert [record.trial_id for record in chosen(ledger, 2)] == ["2", "5"]
    assert [record.trial_id for record in chosen(ledger, 9)] == ["2", "5", "0"]


def test_a_minimized_objective_chooses_the_smallest(ledger):
    for trial_id, value in (("0", 0.5), ("1", 0.2), ("2", 0.9)):
        add(ledger, trial_id, value, objectives={"val/top1": False})
    assert [record.trial_id for record in chosen(ledger, 2)] == ["1", "0"]


def test_with_several_objectives_the_front_is_chosen(ledger):
    for trial_id, value, params in (("0", 90, 100), ("1", 80, 50), ("2", 85, 100), ("3", 95, 300), ("4", 80, 50)):
        add(ledger, trial_id, value, params=params, objectives=BOTH)
    assert [record.trial_id for record in ledger.front()] == ["3", "0", "1", "4"], "equals do not beat one another"
    assert ledger.best().trial_id == "3"
    assert [record.trial_id for record in chosen(ledger, 2)] == ["3", "0"]


def test_a_baseline_is_the_best_of_its_own_search(ledger):
    add(ledger, "kd", 90, role="baseline")
    add(ledger, "kd-1", 93, role="baseline", of="kd")
    add(ledger, "kd-2", 99, role="baseline", of="kd", state="failed")
    add(ledger, "scratch", 80, role="baseline")
    assert {name: record.trial_id for name, record in best_baselines(ledger).items()} == {
        "kd": "kd-1",
        "scratch": "scratch",
    }


def test_a_tuned_baseline_is_in_the_final_as_given_too(ledger):
    """One seed of a search may choose what is worse."""
    add(ledger, "0", 95)
    for trial_id, value, of in (("kd-1", 91, "kd"), ("kd", 90, ""), ("kd-2", 93, "kd"), ("scratch", 80, "")):
        add(ledger, trial_id, value, role="baseline", of=of)
    found = {name: [record.trial_id for record in records] for name, records in rivals(ledger).items()}
    assert found == {"kd": ["kd", "kd-2"], "scratch": ["scratch"]}
    asked = settings(finalists=1, seeds=2, tune_baselines=2, baselines=["kd", "scratch"])
    records = final_records(ledger, asked)
    assert [one.trial_id for one in records[:4]] == ["0-seed1", "kd-seed1", "kd-2-seed1", "scratch-seed1"]
    add(ledger, "scratch-1", 70, role="baseline", of="scratch")
    assert len(final_records(ledger, asked)) == final_runs(asked) == 10
    for record in ledger.records.values():
        record.config |= {"student": "small" if record.trial_id == "0" else "large", "student_kwargs": {}}
    records = final_records(ledger, asked, lambda config, other: {**config, "student": other["student"]})
    assert [one.trial_id for one in records[1:3]] == ["kd-as-0-seed1", "kd-2-as-0-seed1"]
    assert [one.of for one in records[1:3]] == ["kd", "kd-2"]


def test_the_final_has_other_seeds_and_a_full_schedule(ledger):
    add(ledger, "0", 90)
    add(ledger, "scratch", 80, role="baseline")
    records = final_records(ledger, settings(finalists=3, seeds=2, seed=5))
    assert [record.trial_id for record in records] == ["0-seed6", "scratch-seed6", "0-seed7", "scratch-seed7"]
    assert [record.config["seed"] for record in records] == [6, 6, 7, 7]
    assert {record.role for record in records} == {"finalist"}
    assert [record.of for record in records[:2]] == ["0", "scratch"]
    assert all(record.config["sched_restarts"] == [] and record.config["epochs"] == 2 for record in records)


def test_each_student_in_the_final_has_baselines_of_its_own(ledger):
    for trial_id, student, value in (
        ("0", "large", 90),
        ("1", "small", 92),
        ("2", "small", 91),
        ("scratch", "large", 8),
    ):
        record = add(ledger, trial_id, value, role="trial" if trial_id.isdigit() else "baseline")
        record.config |= {"student": student, "student_kwargs": {}}
    asked = []

    def with_student(config, other):
        asked.append((config["student"], other["student"], other["eps"]))
        return {**config, "student": other["student"]}

    records = {
        record.trial_id: record for record in final_records(ledger, settings(finalists=3, seeds=1), with_student)
    }
    assert set(records) == {"0-seed1", "1-seed1", "2-seed1", "scratch-seed1", "scratch-as-1-seed1"}
    assert asked == [("large", "small", "1")], "once, like the better of the two trials"
    assert records["scratch-as-1-seed1"].config["student"] == "small" and records["scratch-as-1-seed1"].of == "scratch"


def test_without_a_complete_trial_there_is_no_final(ledger):
    add(ledger, "0", 90, state="pruned")
    add(ledger, "scratch", 80, role="baseline")
    assert final_records(ledger, settings()) == []


def test_what_a_final_has_is_kept_and_the_rest_goes_on(ledger):
    add(ledger, "0", 90)
    for trial_id, state in (("0-seed1", None), ("0-seed2", "running"), ("0-seed3", "failed")):
        add(ledger, trial_id, 91, role="finalist", of="0", state=state)
    records = {record.trial_id: record for record in final_records(ledger, settings(finalists=1, seeds=3))}
    assert list(records) == ["0-seed2", "0-seed3"]
    assert records["0-seed2"].history, "it goes on"
    assert not records["0-seed3"].history, "it begins anew"
