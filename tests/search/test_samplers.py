"""Each sampler in a small conditional space, asked and told through a real journal as a study does."""

import warnings

import optuna
import pytest
from optuna.trial import TrialState

from search import samplers
from search.objective import TOP1, Objective
from search.optuna_study import open_study
from search.samplers import POPULATION, make_sampler, models_nothing, sampler_notes
from search.settings import resolve
from search.study import Scale, Study
from trainables.errors import InputError

DRAWING = ["tpe", "random", "gp", "cmaes", "qmc", "nsga2", "nsga3"]
ONE, TWO = [Objective(TOP1, True)], [Objective(TOP1, True), Objective("cost/latency_ms", False)]
FLOAT = optuna.distributions.FloatDistribution(0.0, 1.0)
CHOICE = optuna.distributions.CategoricalDistribution([True, False])


def conditional(trial):
    x, k = trial.suggest_float("x", 0.0, 1.0), trial.suggest_int("k", 1, 5)
    y = trial.suggest_float("y", 0.0, 2.0) if trial.suggest_categorical("stage", [True, False]) else 0.5
    return [-((x - 0.3) ** 2) - (y - 1.0) ** 2 - abs(k - 3), x + y]


def search(folder, name, seed=0, trials=20, objectives=ONE, session=None):
    """What a study on one slot draws; a session has so many trials, after each of which another process goes on."""
    folder.mkdir()
    for number in range(trials):
        if number % (session or trials) == 0:
            study = open_study(folder, "s", name, seed, objectives)
        trial = study.ask()
        values = conditional(trial)[: len(objectives)]
        if number % 5 == 3:
            study.tell(trial, state=TrialState.FAIL)
        elif number % 5 == 4 and len(objectives) == 1:
            trial.report(values[0], step=1)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, values)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", DRAWING)
def test_a_seed_repeats_a_study_on_one_slot_and_another_does_not(tmp_path, name):
    first = search(tmp_path / "a", name)
    assert search(tmp_path / "b", name) == first
    assert search(tmp_path / "c", name, seed=1) != first


@pytest.mark.parametrize("name", DRAWING)
def test_a_study_that_was_interrupted_draws_what_it_would_have_drawn(tmp_path, name):
    assert search(tmp_path / "whole", name) == search(tmp_path / "parts", name, session=3)


@pytest.mark.parametrize("name", [name for name in DRAWING if name != "cmaes"])
def test_a_sampler_searches_for_several_objectives_and_repeats_itself(tmp_path, name):
    first = search(tmp_path / "a", name, objectives=TWO)
    assert search(tmp_path / "b", name, objectives=TWO, session=7) == first


@pytest.fixture
def few(monkeypatch):
    """A study of twenty trials is large."""
    monkeypatch.setattr(samplers, "MOST", 12)
    monkeypatch.setattr(samplers, "BEST", 4)


@pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one", "two"])
def test_a_model_of_a_large_study_sees_its_best_and_its_newest_trials_in_order(tmp_path, few, objectives):
    search(tmp_path / "a", "tpe", trials=40, objectives=objectives)
    study = open_study(tmp_path / "a", "s", "tpe", 0, objectives)
    ended = study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    seen = [trial.number for trial in samplers._worth_a_model(study, ended)]
    assert len(seen) == 12 and seen == sorted(seen)
    complete = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    front = sorted(complete, key=lambda one: -one.value) if len(objectives) == 1 else study.best_trials
    best = {trial.number for trial in front[:4]}
    others = [trial.number for trial in ended if trial.number not in best]
    assert set(seen) == best | set(others[-8:])
    assert samplers._worth_a_model(study, ended[:12]) == ended[:12]


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_a_large_studys_draws_repeat_themselves_and_are_optunas_own_until_it_is_large(tmp_path, few, monkeypatch, name):
    first = search(tmp_path / "a", name, trials=25)
    assert search(tmp_path / "b", name, trials=25, session=11) == first
    monkeypatch.setattr(samplers, "MOST", 100)
    whole = search(tmp_path / "c", name, trials=25)
    assert whole[:13] == first[:13] and whole != first


def test_tpe_finds_the_groups_of_parameters_that_it_would_find_in_all_trials(tmp_path):
    search(tmp_path / "a", "tpe", trials=30)
    study = open_study(tmp_path / "a", "s", "tpe", 0, ONE)
    trial, whole = study.ask(), make_sampler("tpe", 0).sampler
    names = list(make_sampler("tpe", 0).infer_relative_search_space(study, trial))
    assert names == list(whole.infer_relative_search_space(study, trial)) and sorted(names) == ["k", "stage", "x", "y"]


def resolved(*sets):
    study = Study(space=lambda trial: {}, scales={"embedded": Scale(teacher="t", student="s")})
    return resolve(study, {"name": "n", "space": "s.py"}, list(sets))


def test_cmaes_and_several_objectives_are_refused_in_one_line():
    with pytest.raises(InputError) as caught:
        resolved("sampler=cmaes", "objectives=val/top1,latency")
    assert caught.value.problems == [
        "sampler: 'cmaes' searches for one objective; take tpe, gp, nsga2 or nsga3, or give one objective"
    ]
    assert resolved("sampler=nsga2", "objectives=val/top1,latency").sampler == "nsga2"


@pytest.mark.parametrize("name", [*DRAWING, "grid", "brute"])
@pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one", "two"])
def test_optuna_has_nothing_to_warn_of(tmp_path, caplog, monkeypatch, name, objectives):
    if name == "cmaes" and objectives is TWO:
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.setattr(optuna.logging.get_logger("optuna"), "propagate", True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = open_study(tmp_path, "s", name, 0, objectives)
        for _ in range(12):
            trial = study.ask()
            trial.suggest_int("k", 0, 30)
            if trial.suggest_categorical("stage", [True, False]):
                trial.suggest_int("y", 0, 3)
            study.tell(trial, [1.0] * len(objectives))
    assert caught == []
    assert [text for text in caplog.messages if "greenlet" not in text] == []  # a hint at a package for speed


def test_the_default_sampler_is_multivariate_grouped_tpe_with_constant_liar():
    sampler = make_sampler("tpe", 0).sampler
    assert sampler._multivariate and sampler._group and sampler._constant_liar


def test_tpe_draws_every_other_trial_parameter_by_parameter(tmp_path, monkeypatch):
    jointly, alone = [], []
    tpe = optuna.samplers.TPESampler
    together, each = tpe._sample_relative, tpe.sample_independent

    def sample_relative(self, study, trial, search_space):
        jointly.extend([trial.number] * bool(search_space))
        return together(self, study, trial, search_space)

    def sample_independent(self, study, trial, name, distribution):
        alone.append(trial.number)
        return each(self, study, trial, name, distribution)

    monkeypatch.setattr(tpe, "_sample_relative", sample_relative)
    monkeypatch.setattr(tpe, "sample_independent", sample_independent)
    search(tmp_path / "a", "tpe", trials=20)
    assert set(jointly) == {*range(2, 20, 2)} and set(alone) >= {*range(1, 20, 2)}


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_a_study_of_tens_has_several_generations(tmp_path, name):
    study = open_study(tmp_path, "s", name, 0, TWO)
    for _ in range(3 * POPULATION):
        trial = study.ask()
        study.tell(trial, conditional(trial))
    generations = {value for trial in study.trials for key, value in trial.system_attrs.items() if "generation" in key}
    assert generations == {0, 1, 2}


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes"])
def test_a_sampler_beats_random_search_on_a_smooth_hill(tmp_path, name):
    trials, seeds = (18, 1) if name == "gp" else (30, 3)  # GP's own time is a second a trial

    def best(name, seed):
        study = open_study(tmp_path / f"{name}{seed}", "s", name, seed, ONE)
        for _ in range(trials):
            trial = study.ask()
            point = [trial.suggest_float(letter, 0.0, 1.0) for letter in "abcd"]
            study.tell(trial, -sum((value - 0.3) ** 2 for value in point))
        return study.best_value

    for seed in range(seeds):
        (tmp_path / f"{name}{seed}").mkdir()
        (tmp_path / f"random{seed}").mkdir()
    assert sum(best(name, seed) for seed in range(seeds)) > sum(best("random", seed) for seed in range(seeds))


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.COMPLETE])
def test_cmaes_goes_on_where_a_parameter_turns_out_to_be_missing_in_some_trials(tmp_path, state):
    study = open_study(tmp_path, "s", "cmaes", 0, ONE)
    for number in range(30):
        trial = study.ask()
        point = [trial.suggest_float(name, 0.0, 1.0) for name in "xyz"[: 2 if number == 14 else 3]]
        if number == 14 and state == TrialState.PRUNED:
            trial.report(-sum(point), step=1)
            study.tell(trial, state=state)
        else:
            study.tell(trial, -sum(point))
    drawn = ["cma:generation" in trial.system_attrs for trial in study.trials]
    assert all(drawn[2:])
    generations = [trial.system_attrs["cma:generation"] for trial in study.trials[15:]]
    assert generations == sorted(generations) and generations[-1] > generations[0]


SPACE = {"x": FLOAT, "stage": CHOICE, "y": FLOAT}


def test_a_sampler_says_which_parameters_of_this_space_it_does_not_model():
    def notes(name, scheduler="none"):
        return sampler_notes(name, scheduler, SPACE, ["y"])

    assert notes("tpe") == notes("random") == notes("tpe", "asha") == []
    assert notes("cmaes") == [
        "sampler cmaes models the numbers that every trial has; TPE draws the rest, each for itself: stage (choices); "
        "y (in some trials only)"
    ]
    assert notes("gp")[0].endswith("TPE draws those of some trials, each for itself: y")
    assert notes("qmc")[0].endswith("they are drawn at random: y")
    assert notes("nsga3")[0].endswith("those of some trials are drawn at random: y")
    assert len(notes("nsga2")) == 1 and "not from those that asha stops" in notes("nsga2", "asha")[1]
    assert sampler_notes("gp", "none", {"x": FLOAT}, []) == []


def test_cmaes_needs_a_number_that_every_trial_has():
    assert not models_nothing(SPACE, ["y"])
    assert models_nothing({"stage": CHOICE, "y": FLOAT}, ["y"])
