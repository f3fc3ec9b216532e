"""Rank agreement against scipy and by hand; the records are what a study writes."""

import math

import pytest
from scipy import stats

from search.agreement import agreements, sentence
from search.ledger import Ledger, TrialRecord

EPOCHS = 4


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


def add(ledger, values, objectives=None, role="trial"):
    trial_id = str(len(ledger.records))
    record = TrialRecord(trial_id, role, {"epochs": EPOCHS}, {}, objectives or {"val/top1": True})
    for epoch, value in enumerate(values, 1):
        record.add({"epoch": epoch, record.objective: value})
    record.finish()
    ledger.save(record)


CURVES = [[10, 30, 40, 50], [20, 10, 50, 60], [30, 20, 60, 70], [40, 50, 70, 80], [50, 40, 80, 75]]


def test_the_correlation_is_spearmans(ledger):
    for values in CURVES:
        add(ledger, values)
    add(ledger, [99, 98, 97, 96], role="baseline")  # is no trial
    found = agreements(ledger)
    assert [one.epoch for one in found] == [1, 2, 3], "the last epoch agrees with itself"
    for place, one in enumerate(found):
        early, last = ([values[at] for values in CURVES] for at in (place, -1))
        assert one.correlation == pytest.approx(stats.spearmanr(early, last).statistic)
        half = 1.96 * math.sqrt((1 + one.correlation**2 / 2) / 2)
        assert one.low == pytest.approx(math.tanh(math.atanh(one.correlation) - half))
        assert (one.trials, one.stopped) == (5, 0)


def test_where_less_is_better_nothing_changes(ledger):
    nll = {"val/loss": False}
    for values in CURVES:
        add(ledger, [100 - value for value in values], nll)
    add(ledger, [65.0], nll)  # at epoch 1 behind all but the first two
    add(ledger, [99.0], nll)  # behind all
    first = agreements(ledger)[0]
    assert first.correlation == pytest.approx(0.9)
    assert (first.stopped, first.ahead, first.ahead_of_best) == (2, 1, 0)


def test_stopped_trials_are_compared_with_those_let_through(ledger):
    for values in CURVES:
        add(ledger, values)
    add(ledger, [5])
    add(ledger, [25, 15])
    add(ledger, [60, 5])
    add(ledger, [math.nan, 5])
    found = {one.epoch: one for one in agreements(ledger)}
    assert (found[1].stopped, found[1].ahead, found[1].ahead_of_best) == (1, 0, 0)
    assert (found[2].stopped, found[2].ahead, found[2].ahead_of_best) == (3, 1, 0)
    add(ledger, [1, 51])  # above the later best's 50
    text = sentence(ledger, [1])
    assert "2 of the 5 stopped trials stood, when stopped, above a trial that was let through, 1 above the one" in text


def test_too_few_or_equal_trials_have_no_correlation(ledger):
    for values in CURVES[:3]:
        add(ledger, values)
    assert all(one.correlation is None for one in agreements(ledger))
    assert sentence(ledger, [1]).startswith("3 complete trials cannot show whether early stopping could have misled")
    add(ledger, [1, 2, 3, 70])
    assert agreements(ledger)[0].correlation is not None
    flat = Ledger(ledger.folder / "flat")
    for _ in range(5):
        add(flat, [1, 2, 3, 50])
    assert agreements(flat)[0].correlation is None


def test_an_empty_study_has_a_sentence(ledger):
    assert agreements(ledger) == []
    assert sentence(ledger, [1]).startswith("0 complete trials cannot show")
    assert sentence(ledger, []) == "No trial was stopped early, so nothing was misled."


def test_of_several_objectives_it_is_the_first_ones(ledger):
    for values in CURVES:
        add(ledger, values, {"val/top1": True, "cost/student_params": False})
    assert "That is val/top1 alone, by which trials are stopped: of cost/student_params it says nothing." in sentence(
        ledger, [1]
    )


def test_good_grounds(ledger):
    for value in range(12):
        add(ledger, [value, value, value + 1, value + 2])
    add(ledger, [0.5])
    text = sentence(ledger, [1, 3])
    assert text.startswith("At epoch 1, where trials were stopped, the ranking of the 12 complete trials agrees")
    assert "by ρ = 1.00: early stopping had good grounds." in text and "misled" not in text


def test_a_perfect_order_of_few_is_uncertain(ledger):
    for value in range(5):
        add(ledger, [value, value, value, value])
    add(ledger, [0.5])
    assert "good grounds, though so few trials leave it uncertain" in sentence(ledger, [1])


def test_misled_and_from_where_on_not(ledger):
    """Epoch 1 says nothing, epochs 2 and 3 say it all."""
    for value, early in enumerate([3, 11, 0, 8, 5, 1, 10, 2, 7, 4, 9, 6]):
        add(ledger, [early, value, value, value])
    add(ledger, [0.5])
    text = sentence(ledger, [1, 2])
    assert "early stopping could have misled" in text
    assert "From epoch 2 on" in text and "(--set grace_epochs=2)" in text


def test_the_weakest_epoch_at_which_trials_were_stopped_decides(ledger):
    for value, middle in enumerate([3, 11, 0, 8, 5, 1, 10, 2, 7, 4, 9, 6]):
        add(ledger, [value, middle, value, value])
    add(ledger, [0.5])
    assert "At epoch 1, where trials were stopped," in sentence(ledger, [1, 2])
    add(ledger, [0.5, 0.5])
    text = sentence(ledger, [1, 2])
    assert "At epoch 2, the weakest of the 2 epochs where trials were stopped," in text
    assert "could have misled" in text and "From epoch 3 on" in text
