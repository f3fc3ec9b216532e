"""A baseline's own small search: a real Optuna journal and the ledger."""

import pytest

from search.baselines import GIVEN, LR_SPAN, STARTUP, BaselineSearch
from search.ledger import Ledger, TrialRecord
from search.settings import BASELINES
from tests.conftest import TINY
from trainables.config import TrialConfig

OBJECTIVES = {"val/top1": True}


@pytest.fixture
def make(tmp_path):
    ledger = Ledger(tmp_path / "trials")

    def search(name="kd", trials=3, **fields):
        config = TrialConfig(**{**TINY, **BASELINES[name], **fields}).model_dump()
        return BaselineSearch(tmp_path, name, config, trials, 0, ledger, lambda config: TrialConfig(**config))

    return ledger, search


def run(ledger, search, value):
    record = search.next(OBJECTIVES)
    ledger.save(record)
    for epoch in range(1, record.config["epochs"] + 1):
        record.add({"epoch": epoch, "val/top1": value})
    record.finish()
    ledger.save(record)
    search.tell(record)
    return record


def test_it_draws_the_distillers_ranges_and_the_learning_rate(make):
    ledger, make_search = make
    search = make_search()
    records = [run(ledger, search, 90.0 + number) for number in range(3)]
    assert search.left() == 0
    assert [record.trial_id for record in records] == ["kd-1", "kd-2", "kd-3"]
    assert all(record.of == "kd" and record.role == "baseline" for record in records)
    for record in records:
        assert TINY["lr"] / LR_SPAN <= record.config["lr"] <= TINY["lr"] * LR_SPAN
        assert record.config["distiller"] == "kd" and record.config["epochs"] == TINY["epochs"]
    assert len({record.config["temperature"] for record in records}) == 3


def test_the_student_alone_has_its_learning_rate_searched(make):
    ledger, make_search = make
    record = run(ledger, make_search("scratch"), 80.0)
    assert list(record.params) == ["lr"]


def test_it_goes_on_where_it_was_cut_off(make):
    ledger, make_search = make
    first = make_search()
    done = run(ledger, first, 90.0)
    running = first.next(OBJECTIVES)
    ledger.save(running)
    lost = first.next(OBJECTIVES)  # asked, and killed before it was written down
    again = make_search()
    assert again.left() == 1
    fresh = again.next(OBJECTIVES)
    assert (done.trial_id, running.trial_id, fresh.trial_id) == ("kd-1", "kd-2", "kd-3")
    assert fresh.number == 3 and lost.number == 2
    assert fresh.config["lr"] not in (done.config["lr"], running.config["lr"])


def given(ledger, value, **fields):
    config = TrialConfig(**{**TINY, **BASELINES["kd"], **fields}).model_dump()
    record = TrialRecord("kd", "baseline", config, {}, OBJECTIVES)
    for epoch in range(1, config["epochs"] + 1):
        record.add({"epoch": epoch, "val/top1": value})
    ledger.save(record)
    return record


def told(search):
    return [trial for trial in search._study.get_trials() if GIVEN in trial.user_attrs]


def test_it_begins_with_what_the_baseline_as_given_reached(make):
    ledger, make_search = make
    search, record = make_search(trials=4), given(ledger, 90.0)
    run(ledger, search, 80.0)
    assert told(search) == [], "it is not complete yet"
    record.finish()
    ledger.save(record)
    ran = [run(ledger, search, 81.0)]
    ran.append(run(ledger, make_search(trials=4), 82.0))  # of another session
    (trial,) = told(make_search())
    assert trial.value == 90.0 and trial.params["lr"] == TINY["lr"]
    assert trial.params["temperature@kd"] == record.config["temperature"]
    assert [(one.trial_id, one.number) for one in ran] == [("kd-2", 2), ("kd-3", 3)]


def test_what_lies_outside_of_the_ranges_is_not_told(make):
    ledger, make_search = make
    given(ledger, 90.0, temperature=40.0).finish()
    search = make_search(temperature=40.0)
    run(ledger, search, 80.0)
    assert told(search) == []


def test_a_search_of_eight_is_a_model_s_for_the_most_part(make, monkeypatch):
    """Not random search under another name."""
    ledger, make_search = make
    given(ledger, 90.0).finish()
    search, modelled = make_search(trials=8), []
    sampler = search._study.sampler.sampler
    sample = sampler._sample
    monkeypatch.setattr(sampler, "_sample", lambda *of: modelled.append(of[1].number) or sample(*of))
    for value in range(8):
        run(ledger, search, 80.0 + value)
    assert sorted(set(modelled)) == list(range(STARTUP, 9))
