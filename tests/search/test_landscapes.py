"""The searches that the benchmarks compare, over a few landscapes; the whole: tests/benchmarks/run.py."""

from tests.benchmarks import warmstart
from tests.benchmarks.landscapes import EPOCHS, Search, regret


def test_a_budget_of_epochs_ends_a_search_and_its_best_is_judged_without_noise():
    search = Search()
    state, again = (search.run(3, full_trials=4, sampler="random", scheduler="none") for _ in range(2))
    assert EPOCHS * 4 <= state.epochs < EPOCHS * 5 and state.reason == "out of epochs"
    assert [one.params for _, _, one in state.ended] == [one.params for _, _, one in again.ended]
    assert min(regret(one, 3) for _, _, one in state.ended) == regret(state.best(), 3) > 0
    other = search.run(3, full_trials=4, seed=4, sampler="random", scheduler="none")
    assert other.best().params != state.best().params


def test_an_earlier_study_of_a_related_landscape_saves_trials(monkeypatch):
    monkeypatch.setattr(warmstart, "REPEATS", 2)
    figures = warmstart.measure()
    assert figures["trials_saved"] > 0 and figures["points_ahead_at_end"] > 0
