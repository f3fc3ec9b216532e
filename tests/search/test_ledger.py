import dataclasses
import json
import math

import pytest

from search.ledger import COMPLETE, FAILED, PRUNED, RUNNING, Ledger, TrialRecord


def record(trial_id="3", epochs=4, values=(), role="trial"):
    made = TrialRecord(trial_id=trial_id, role=role, config={"epochs": epochs}, params={"eps": 1.2})
    for epoch, value in enumerate(values, 1):
        made.add({"epoch": epoch, "val/top1": value})
    return made


def test_a_trial_that_reached_its_last_epoch_is_complete():
    made = record(values=[1, 2, 3, 4])
    made.finish()
    assert (made.state, made.reason, made.value, made.best) == (COMPLETE, "", 4, 4)


def test_a_trial_that_ended_before_is_pruned_and_says_where():
    made = record(values=[1, 2])
    made.finish()
    assert made.state == PRUNED
    assert made.reason == "stopped early by the scheduler at epoch 2"


def test_an_error_is_a_failure_whatever_was_reported():
    made = record(values=[1, 2, 3, 4])
    made.finish("out of memory")
    assert (made.state, made.reason) == (FAILED, "out of memory")


@pytest.mark.parametrize(
    ("values", "reason"), [([], "it reported no epoch"), ([1, float("nan")], "val/top1 was not finite")]
)
def test_no_value_or_a_value_that_is_no_number_is_a_failure(values, reason):
    made = record(values=values)
    made.finish()
    assert (made.state, made.reason) == (FAILED, reason)


def test_a_trial_cut_off_before_its_first_epoch_did_not_fail():
    made = record(values=[])
    made.finish(stopped="stopped by the time budget")
    assert (made.state, made.reason) == (PRUNED, "stopped by the time budget before its first epoch's end")


def test_an_epoch_counts_once():
    made = record(values=[1, 2])
    assert not made.add({"epoch": 2, "val/top1": 9})
    assert made.add({"epoch": 3, "val/top1": 9})
    assert [entry["epoch"] for entry in made.history] == [1, 2, 3]


def test_records_come_back_from_disk(tmp_path):
    ledger = Ledger(tmp_path)
    made = record(values=[1, 2])
    ledger.save(made)
    assert Ledger(tmp_path).records == {"3": made}
    assert Ledger(tmp_path).records["3"].state == RUNNING


def test_the_best_is_a_complete_trial_and_no_baseline(tmp_path):
    ledger = Ledger(tmp_path)
    for made in (record("1", 2, [5, 6]), record("2", 4, [9]), record("scratch", 2, [9, 9], role="baseline")):
        made.finish()
        ledger.save(made)
    assert ledger.best().trial_id == "1"


@pytest.mark.parametrize(("ece", "said"), [(math.nan, "val/ece was not finite"), (None, "val/ece was not reported")])
def test_every_objective_of_a_complete_trial_is_a_number(ece, said):
    record = TrialRecord("0", "trial", {"epochs": 1}, {}, {"val/top1": True, "val/ece": False})
    record.add({"epoch": 1, "val/top1": 90.0, **({} if ece is None else {"val/ece": ece})})
    record.finish()
    assert (record.state, record.reason) == ("failed", said)


def test_what_a_budget_cut_off_was_not_found_to_be_worse():
    for stopped, cut_off in ((None, False), ("stopped by the time budget (9 s)", True)):
        record = TrialRecord("0", "trial", {"epochs": 3}, {})
        record.add({"epoch": 1, "val/top1": 90.0})
        record.finish(stopped=stopped)
        assert record.state == "pruned" and record.cut_off is cut_off


def test_a_records_file_has_all_its_fields(tmp_path):
    made = record(values=[1, 2])
    Ledger(tmp_path).save(made)
    assert json.loads((tmp_path / "3" / "record.json").read_text()) == dataclasses.asdict(made)


def test_thousands_of_records_keep_each_name_once(tmp_path):
    """As they come from another process and from disk, where each brings its own."""
    for trial_id in ("1", "2"):
        made = record(trial_id)
        made.config = json.loads('{"epochs": 4, "a field": 1}')
        made.add(json.loads('{"epoch": 1, "val/a metric": 2.0}'))
        Ledger(tmp_path).save(made)
    one, other = Ledger(tmp_path).records.values()
    for mine, theirs in ((one.history, other.history), (one.history, made.history), ([one.config], [other.config])):
        assert [id(name) for name in mine[0]] == [id(name) for name in theirs[0]]
