"""The searcher's truths without Tune; tests/search/test_states.py has a real study."""

import math

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search.ledger import FAILED, Ledger, TrialRecord
from search.objective import TOP1, Objective
from search.optuna_study import open_study, own_study
from search.searcher import StudySearcher


def space(trial):
    return {"eps": trial.suggest_float("eps", 1.0, 2.0)}


GRID = [{"eps": 1.0}, {"eps": 1.5}, {"eps": 2.0}]


def make(folder, baselines=None, sampler="random", grid=None, space=space, handed=None, disk_full=False, **begin):
    ledger = Ledger(folder / "trials")
    begin["first_guesses"] = begin.pop("guesses", ())
    study = open_study(folder, "s", sampler, 0, [Objective(TOP1, True)], **begin)
    searcher = StudySearcher(
        study,
        space,
        lambda fields: {"epochs": 3, **fields},
        baselines or {},
        [],
        grid,
        ledger,
        lambda record: None if handed is None else handed.append((record.trial_id, record.epoch)),
        lambda trial_id: f"reason of {trial_id}",
        {TOP1: True},
        lambda epochs, fresh: True,
        lambda: math.inf,
        lambda trial_id: disk_full,
    )
    return study, ledger, searcher


def report(ledger, trial_id, *values):
    for epoch, value in enumerate(values, 1):
        ledger.records[trial_id].add({"epoch": epoch, "val/top1": value})


def test_baselines_come_first_and_stay_out_of_optuna(tmp_path):
    study, ledger, searcher = make(tmp_path, {"scratch": {"epochs": 3}})
    assert searcher.suggest("x")["role"] == "baseline"
    report(ledger, "scratch", 1, 2, 3)
    searcher.on_trial_complete("x", {})
    assert ledger.records["scratch"].state == "complete"
    assert searcher.suggest("y")["trial_id"] == "0"
    assert len(study.trials) == 1


def test_optuna_is_told_the_truth(tmp_path):
    study, ledger, searcher = make(tmp_path)
    outcomes = {
        "full": ((1.0, 2.0, 3.0), False),
        "stopped": ((1.0, 2.0), False),
        "raised": ((1.0,), True),
        "silent": ((), False),
    }
    for name, (values, error) in outcomes.items():
        trial_id = searcher.suggest(name)["trial_id"]
        report(ledger, trial_id, *values)
        searcher.on_trial_complete(name, {}, error=error)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL]
    assert study.trials[0].value == 3.0
    assert study.trials[1].intermediate_values == {1: 1.0, 2: 2.0}
    assert study.trials[2].user_attrs["reason"] == "reason of 2"


def test_nan_leaves_nothing_running(tmp_path):
    study, ledger, searcher = make(tmp_path)
    searcher.suggest("x")
    report(ledger, "0", 1.0, float("nan"))
    searcher.on_trial_complete("x", {})
    assert study.trials[0].state == TrialState.FAIL
    assert ledger.records["0"].state == FAILED


def test_an_interrupted_trial_comes_again_with_its_configuration_and_epoch(tmp_path):
    _, ledger, searcher = make(tmp_path)
    first = searcher.suggest("x")
    report(ledger, "0", 1.0)
    ledger.save(ledger.records["0"])
    study, ledger, searcher = make(tmp_path, handed=(handed := []))
    assert searcher.suggest("y") == first
    assert handed == [("0", 1)]
    report(ledger, "0", 1.0, 2.0, 3.0)
    searcher.on_trial_complete("y", {})
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]
    assert study.trials[0].intermediate_values == {1: 1.0, 2: 2.0, 3: 3.0}


def test_what_only_one_of_the_two_knows_is_settled_on_restart(tmp_path):
    study, ledger, searcher = make(tmp_path)
    study.ask()  # asked, but the driver died before the ledger had it
    searcher.suggest("x")
    report(ledger, "1", 1.0, 2.0, 3.0)
    ledger.records["1"].finish()
    ledger.save(ledger.records["1"])  # recorded, but the driver died before Optuna was told
    study, _, _ = make(tmp_path)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_trial_that_finds_no_room_on_the_disk_ends_the_session_and_goes_on_with_the_next(tmp_path):
    study, ledger, searcher = make(tmp_path, disk_full=True)
    trial = searcher.suggest("x")["trial_id"]
    searcher.on_trial_complete("x", {}, error=True)
    assert searcher.no_room == f"trial {trial} cannot write its files: reason of {trial}"
    assert searcher.suggest("y") == Searcher.FINISHED
    assert ledger.records[trial].state == "running" and study.trials[-1].state == TrialState.RUNNING
    _, _, searcher = make(tmp_path)
    assert searcher.suggest("x")["trial_id"] == trial


def test_a_grid_gives_each_point_once_with_trials_running_side_by_side(tmp_path):
    study, ledger, searcher = make(tmp_path, sampler="grid", grid=GRID)
    assert searcher.left(50) == 3 and searcher.left(2) == 2
    assert [searcher.suggest(name)["trial_id"] for name in "ab"] == ["0", "1"]  # both are running
    report(ledger, "0", 1, 2, 3)
    searcher.on_trial_complete("a", {}, error=True)
    searcher.suggest("c")
    assert [trial.params for trial in study.trials] == GRID
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING]


def test_a_grid_goes_on_where_it_was_cut_off(tmp_path):
    study, ledger, searcher = make(tmp_path, sampler="grid", grid=GRID)
    searcher.suggest("a")
    report(ledger, "0", 1, 2, 3)
    searcher.on_trial_complete("a", {})
    searcher.suggest("b")  # cut off while it trains
    study.enqueue_trial(GRID[2])
    study.ask()  # cut off before it was recorded
    study, ledger, searcher = make(tmp_path, sampler="grid", grid=GRID)
    assert searcher.left(50) == 2
    assert [searcher.suggest(name)["trial_id"] for name in "xy"] == ["1", "3"]
    assert [record.params for record in ledger.of_role("trial")] == GRID
    assert make(tmp_path, sampler="grid", grid=GRID)[2].left(50) == 2, "both go on"


def test_a_finished_grid_leaves_nothing_to_do(tmp_path):
    _, ledger, searcher = make(tmp_path, sampler="grid", grid=GRID)
    for number in range(3):
        searcher.suggest(str(number))
        report(ledger, str(number), 1, 2, 3)
        searcher.on_trial_complete(str(number), {})
    assert searcher.left(50) == 0
    assert make(tmp_path, sampler="grid", grid=GRID)[2].left(50) == 0
    assert make(tmp_path, sampler="grid", grid=[*GRID, {"eps": 1.25}])[2].left(50) == 1, "a finer one goes on"


def points(trial):
    """Six points: y exists for one choice only."""
    x = trial.suggest_int("x", 1, 3) if trial.suggest_categorical("wide", [False, True]) else 0
    return {"x": x, "y": trial.suggest_float("y", 0.0, 1.0, step=0.5) if not x else 0.0}


def test_brute_force_ends_when_every_point_was_tried_with_trials_side_by_side(tmp_path):
    _, ledger, searcher = make(tmp_path, sampler="brute", space=points)
    assert searcher.left(50) == 50
    for name in "abcdef":
        assert searcher.suggest(name)["role"] == "trial"
    assert searcher.suggest("g") == "FINISHED", "all six are running"
    for number, name in enumerate("abcdef"):
        report(ledger, str(number), 1, 2, 3)
        searcher.on_trial_complete(name, {})
    assert searcher.suggest("h") == "FINISHED"
    found = [tuple(record.params.items()) for record in ledger.of_role("trial")]
    assert len(set(found)) == len(found) == 6


def test_brute_force_goes_on_where_it_was_cut_off(tmp_path):
    study, ledger, searcher = make(tmp_path, sampler="brute", space=points)
    for number, name in enumerate("abc"):
        searcher.suggest(name)
        report(ledger, str(number), 1, 2, 3)
        searcher.on_trial_complete(name, {}, error=name == "b")
    searcher.suggest("d")  # cut off while it trains
    study.ask().suggest_categorical("wide", [False, True])  # cut off in the midst of being drawn
    study, ledger, searcher = make(tmp_path, sampler="brute", space=points)
    assert searcher.suggest("again")["trial_id"] == "3"
    while searcher.suggest(f"new {len(ledger.records)}") != "FINISHED":
        assert len(ledger.records) <= 6
    found = [tuple(record.params.items()) for record in ledger.of_role("trial")]
    assert len(set(found)) == len(found) == 6
    assert make(tmp_path, sampler="brute", space=points)[2].left(50) == 3, "only those that were running"


def test_what_is_enqueued_comes_even_where_brute_force_is_done(tmp_path):
    _, ledger, searcher = make(tmp_path, sampler="brute", space=points, guesses=[{"wide": True, "x": 2}] * 2)
    assert [searcher.suggest(name)["trial_id"] for name in "ab"] == ["0", "1"]
    assert ledger.records["0"].params == ledger.records["1"].params == {"wide": True, "x": 2}
    for name in "cdefg":
        assert searcher.suggest(name)["role"] == "trial"
    assert searcher.suggest("h") == "FINISHED"


def prior(eps, value):
    return optuna.trial.create_trial(
        value=value,
        params={"eps": eps},
        distributions={"eps": optuna.distributions.FloatDistribution(1.0, 2.0)},
        user_attrs={"from": "other/3"},
    )


def test_other_studies_trials_are_not_counted_and_come_once(tmp_path):
    priors = [prior(1.5, 9.0), prior(1.6, 8.0)]
    study, ledger, searcher = make(tmp_path, priors=priors, guesses=[{"eps": 1.25}])
    assert searcher.left(3) == 3
    first = searcher.suggest("x")
    assert first["trial_id"] == "0" and ledger.records["0"].number == 2
    assert ledger.records["0"].params == {"eps": 1.25}
    report(ledger, "0", 1.0, 2.0, 3.0)
    searcher.on_trial_complete("x", {})
    searcher.suggest("y")  # cut off
    study, ledger, searcher = make(tmp_path, priors=priors, guesses=[{"eps": 1.25}])
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3 + [TrialState.RUNNING]
    assert study.trials[2].value == 3.0
    assert searcher.left(3) == 2
    assert [searcher.suggest(name)["trial_id"] for name in "yz"] == ["1", "2"]
    assert own_study(study).best_value == 3.0 and len(own_study(study).trials) == 3


def test_an_extended_study_tries_the_first_guesses_that_are_left(tmp_path):
    guesses = [{"eps": 1.25}, {"eps": 1.5}, {"eps": 1.75}]
    _, _, searcher = make(tmp_path, guesses=guesses[:2])
    searcher.suggest("x")
    study, ledger, searcher = make(tmp_path, guesses=guesses)
    for name in "xyz":
        searcher.suggest(name)
    assert [record.params for record in ledger.of_role("trial")] == guesses and len(study.trials) == 3


def test_no_more_first_guesses_wait_than_there_is_room_for(tmp_path):
    guesses = [{"eps": 1.1}, {"eps": 1.2}, {"eps": 1.3}, {"eps": 1.4}]
    study, ledger, searcher = make(tmp_path, guesses=guesses, trials=2)
    assert len(study.trials) == 2
    for name, error in (("x", False), ("y", True)):
        searcher.suggest(name)
        report(ledger, ledger.records[max(ledger.records)].trial_id, 1.0, 2.0, 3.0)
        searcher.on_trial_complete(name, {}, error=error)
    study.ask()  # the process is killed before the ledger knows of it
    study, ledger, searcher = make(tmp_path, guesses=[{"eps": 1.9}, *guesses], trials=4)  # in a new range
    assert [trial.state for trial in study.trials][2:] == [TrialState.FAIL, TrialState.WAITING]
    study, ledger, searcher = make(tmp_path, guesses=[{"eps": 1.9}, *guesses], trials=4)
    assert [trial.system_attrs["fixed_params"] for trial in study.trials[3:]] == [{"eps": 1.9}, {"eps": 1.3}]
    assert [searcher.suggest(name)["trial_id"] for name in "xy"] == ["3", "4"]


def test_a_study_that_was_cut_off_while_it_began_begins_anew(tmp_path, monkeypatch):
    def cut_off(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(optuna.Study, "enqueue_trial", cut_off)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, priors=[prior(1.5, 9.0)], guesses=[{"eps": 1.25}])
    study, _, searcher = make(tmp_path, priors=[prior(1.5, 9.0)], guesses=[{"eps": 1.25}])
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.WAITING]
    assert searcher.suggest("x")["trial_id"] == "0"


def test_a_record_is_whole(tmp_path):
    _, ledger, searcher = make(tmp_path)
    searcher.suggest("x")
    record = ledger.records["0"]
    assert isinstance(record, TrialRecord)
    assert record.params.keys() == {"eps"}
    assert record.config["eps"] == record.params["eps"]


def test_fewer_trials_than_are_under_way_leave_none_of_them_behind(tmp_path):
    _, ledger, searcher = make(tmp_path)
    for name in "abcd":
        searcher.suggest(name)
    for name, trial_id in (("a", "0"), ("b", "1")):
        report(ledger, trial_id, 1, 2, 3)
        searcher.on_trial_complete(name, {})
    for record in ledger.records.values():
        ledger.save(record)
    _, _, again = make(tmp_path)
    assert again.left(2) == 2, "two are running"


def test_a_first_guess_whose_trial_never_began_comes_again(tmp_path):
    study, _, _ = make(tmp_path, guesses=[{"eps": 1.25}])
    study.ask()  # the process is killed before the ledger knows of it
    study, _, searcher = make(tmp_path)
    assert study.trials[0].state == TrialState.FAIL
    assert searcher.suggest("x")["trial_id"] == "1" and study.trials[1].system_attrs["fixed_params"] == {"eps": 1.25}


def test_a_trial_that_had_reported_all_its_epochs_is_not_trained_again(tmp_path):
    _, ledger, searcher = make(tmp_path)
    searcher.suggest("x")
    report(ledger, "0", 1, 2, 3)
    ledger.save(ledger.records["0"])
    ledger = Ledger(tmp_path / "trials")
    ledger.settle()
    assert ledger.records["0"].state == "complete"
    study, _, again = make(tmp_path)
    assert again.left(1) == 0 and study.trials[0].state == TrialState.COMPLETE
