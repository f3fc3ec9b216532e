"""Starting warm from earlier studies, read from a real MLflow store and from ledgers."""

import json
import shutil

import optuna
import pytest
from optuna.trial import TrialState

from search import earlier as reading
from search.earlier import read_studies
from search.ledger import Ledger, TrialRecord
from search.objective import parse_objectives
from search.optuna_study import kept_guesses, open_study
from search.resume import comparable, remember, what_stays
from search.settings import resolve, trial_config
from search.space import SearchSpace
from search.study import Scale, Study
from search.tracking.mirror import Mirror
from search.tracking.study_run import StudyRun
from search.warm_start import fitting, take_over
from trainables.errors import InputError

DATA = "0123456789abcdef"


def ofa(trial):
    fields = {"eps": trial.suggest_float("eps", 0.8, 2.5)}
    if trial.suggest_categorical("all_stages", [True, False]):
        return {**fields, "stages": [1, 2, 3, 4], "ofa_loss_weight": trial.suggest_float("ofa_loss_weight", 0.1, 1.0)}
    return {**fields, "stages": []}


def settings(*sets, seed=0, **fields):
    models = {"teacher": "t", "student": "s", "epochs": 2, **fields}
    study = Study(space=ofa, scales={"embedded": Scale(**models)})
    return resolve(study, {"name": "mine", "space": "s.py", "seed": seed}, list(sets))


class Store:
    """A tracking store and a storage with studies of ours."""

    def __init__(self, place):
        self.storage, self.uri = place / "runs", f"sqlite:///{place}/mlflow.db"

    def write(self, name, params, settings, data=DATA, function=ofa, tracked=True, kept=True, tags=()):
        """A study whose trials had these parameters: the one at i reaches 50 + i, every third one was pruned."""
        folder = self.storage / name
        ledger = Ledger(folder / "trials")
        objectives = {one.metric: one.maximize for one in parse_objectives(settings.objectives, settings.metrics)}
        remember(folder, settings, data, {"name": name}, [])
        for number, given in enumerate(params):
            study = optuna.create_study()
            study.enqueue_trial(given)
            trial = study.ask()
            config = trial_config(settings, settings.recipe, function(trial)).model_dump()
            record = TrialRecord(str(number), "trial", config, trial.params, objectives, number)
            for epoch in (1,) if number % 3 == 2 else (1, 2):
                record.add({"epoch": epoch, **{name: 50.0 + number - 1 / epoch for name in objectives}})
            record.finish()
            ledger.save(record)
        ledger.save(TrialRecord("99", "trial", config, trial.params, objectives, 99))  # it is still running
        ledger.save(TrialRecord("kd", "baseline", config, {}, objectives))
        if tracked:
            self.track(name, ledger, settings, data, objectives, dict(tags))
        if not kept:
            shutil.rmtree(folder)
        return ledger

    def track(self, name, ledger, settings, data, objectives, tags):
        known = {
            "pair": f"{settings.teacher} -> {settings.student}",
            "data_fingerprint": data,
            "comparable": comparable(what_stays(settings, data)),
            "objectives": json.dumps(objectives),
        }
        folder = self.storage / name
        StudyRun(folder, name).begin(known | tags, {"epochs": settings.epochs}, {})
        mirror = Mirror(self.uri, folder)
        mirror.open()
        for place in mirror.places():
            mirror.trial(place, live=True)
        mirror.study()

    def take(self, names, settings, data=DATA, function=ofa):
        """What a study of these settings takes over."""
        space = SearchSpace(function, settings.search, {})
        return take_over(
            read_studies(names, self.uri, self.storage),
            space,
            lambda fields: trial_config(settings, settings.recipe, fields),
            settings,
            data,
        )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


FIVE = [
    {"eps": 1.0, "all_stages": True, "ofa_loss_weight": 0.5},
    {"eps": 1.1, "all_stages": False},
    {"eps": 1.2, "all_stages": True, "ofa_loss_weight": 0.2},  # pruned
    {"eps": 2.4, "all_stages": False},
    {"eps": 1.4, "all_stages": False},
]


@pytest.mark.parametrize("kept", [True, False], ids=["with its folder", "of another machine"])
def test_the_same_pair_and_data_give_first_guesses_and_observations(store, kept):
    store.write("A", FIVE, settings(), kept=kept)
    taken = store.take(["A"], settings("sampler=tpe", "trials=40", seed=7))
    assert taken.guesses == [FIVE[4], FIVE[3], FIVE[1]]
    assert taken.notes == ["warm start from A: 3 first guesses, 5 observations (same pair, data and recipe)"]
    assert [trial.params for trial in taken.priors] == FIVE
    assert taken.searched == {"A": 5}
    assert [trial.user_attrs["from"] for trial in taken.priors] == [f"A/{number}" for number in range(5)]
    assert [trial.state for trial in taken.priors] == [
        TrialState.PRUNED if number == 2 else TrialState.COMPLETE for number in range(5)
    ]
    assert [trial.value for trial in taken.priors] == [49.5, 50.5, 51.0, 52.5, 53.5]
    assert taken.priors[0].intermediate_values == {1: 49.0, 2: 49.5}
    assert taken.priors[2].intermediate_values == {1: 51.0}


def test_optuna_learns_from_the_observations_and_keeps_them_apart(store, tmp_path):
    store.write("A", FIVE, settings())
    taken = store.take(["A"], settings())
    objectives = parse_objectives(["top1"])
    study = open_study(tmp_path, "mine", "tpe", 0, objectives, taken.guesses, taken.priors)
    states = [TrialState.COMPLETE] * 2 + [TrialState.PRUNED] + [TrialState.COMPLETE] * 2 + [TrialState.WAITING] * 3
    assert [trial.state for trial in study.trials] == states
    again = open_study(tmp_path, "mine", "tpe", 0, objectives, taken.guesses, taken.priors)
    assert len(again.trials) == 8, "they come once"
    trial = again.ask()
    assert trial.number == 5 and ofa(trial)["eps"] == 1.4


def test_what_had_no_room_is_kept_and_comes_before_the_spaces_guesses(store, tmp_path):
    store.write("A", FIVE, settings())
    taken, own = store.take(["A"], settings()), {"eps": 0.9, "all_stages": True}
    begin = {"objectives": parse_objectives(["top1"]), "priors": taken.priors}
    study = open_study(tmp_path, "mine", "tpe", 0, **begin, first_guesses=taken.guesses, trials=1, warm=taken.guesses)
    assert [trial.state for trial in study.trials[5:]] == [TrialState.WAITING]
    assert ofa(study.ask())["eps"] == 1.4
    kept = kept_guesses(tmp_path)
    assert kept == taken.guesses == [FIVE[4], FIVE[3], FIVE[1]]

    def guesses(*sets):
        changed = settings(*sets)
        now = SearchSpace(ofa, changed.search, {})
        now.distributions(64, 0)  # it has been checked
        return list(fitting(kept, now, lambda fields: trial_config(changed, changed.recipe, fields)))

    assert guesses("search.eps=1.3..1.45") == [FIVE[4], {"all_stages": False}]
    assert guesses("search.eps=1.3..1.45", "search.all_stages=true") == [{"eps": 1.4}]
    study = open_study(tmp_path, "mine", "tpe", 0, **begin, first_guesses=[*guesses(), own], trials=4)
    waiting = [trial.system_attrs["fixed_params"] for trial in study.trials if trial.state == TrialState.WAITING]
    assert waiting == [FIVE[3], FIVE[1], own]


def test_before_the_runs_told_what_was_searched_the_ledger_is_read(store):
    store.write("A", FIVE, settings(), tracked=False)
    taken = store.take(["A"], settings())
    assert taken.guesses == [FIVE[4], FIVE[3], FIVE[1]] and len(taken.priors) == 5
    assert taken.priors[0].intermediate_values == {1: 49.0, 2: 49.5}


def test_a_study_of_before_in_the_store_is_read_from_its_folder(store, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("search.tracking.mirror.split_tag", lambda name, text: {})
        store.write("A", FIVE, settings())
    assert len(store.take(["A"], settings()).priors) == 5
    shutil.rmtree(store.storage / "A")
    with pytest.raises(InputError, match="study 'A' has no complete trial"):
        store.take(["A"], settings())


DIFFERENCES = {
    "other data": ({}, "another"),
    "another pair": ({"student": "resnet"}, DATA),
    "trials of another length": ({"epochs": 3}, DATA),
    "other objectives": ({"objectives": ["val/loss"]}, DATA),
    "another recipe, or other settings of data or models": ({"lr": 0.5}, DATA),
}


@pytest.mark.parametrize("tracked", [True, False], ids=["tracking", "ledger"])
@pytest.mark.parametrize("why", DIFFERENCES)
def test_what_means_something_else_here_gives_guesses_only_and_says_why(store, why, tracked):
    store.write("A", FIVE, settings(), tracked=tracked)
    fields, data = DIFFERENCES[why]
    taken = store.take(["A"], settings(**fields), data)
    assert taken.notes == [f"warm start from A: 3 first guesses; not as observations: {why}"]
    assert taken.guesses == [FIVE[4], FIVE[3], FIVE[1]] and taken.priors == []


def test_the_earlier_studys_own_direction_decides_which_are_its_best(store):
    store.write("A", FIVE, settings(objectives=["val/loss"]))
    assert store.take(["A"], settings()).guesses == [FIVE[0], FIVE[1], FIVE[3]]


@pytest.mark.parametrize("sampler", ["random", "qmc", "cmaes", "nsga2", "grid", "brute"])
def test_samplers_that_do_not_learn_from_others_get_guesses_only(store, sampler):
    store.write("A", FIVE, settings())
    taken = store.take(["A"], settings(f"sampler={sampler}"))
    assert taken.priors == [] and taken.notes[0].endswith(
        f"3 first guesses; not as observations: sampler {sampler} learns from its own trials alone"
    )


def test_trials_outside_of_the_space_are_no_observations_and_their_guess_loses_what_does_not_fit(store):
    store.write("A", FIVE, settings())
    taken = store.take(["A"], settings("search.eps=1.05..2.0"))
    assert taken.guesses == [FIVE[4], {"all_stages": False}, FIVE[1]]
    assert [trial.params["eps"] for trial in taken.priors] == [1.1, 1.2, 1.4]
    assert taken.notes == [
        "warm start from A: 3 first guesses, 3 observations (same pair, data and recipe); 2 other trials cannot be had "
        "in this space"
    ]
    assert str(taken.priors[0].distributions["eps"]) == str(optuna.distributions.FloatDistribution(1.05, 2.0))


def test_a_trial_with_another_fixed_value_is_no_observation(store):
    store.write("A", FIVE, settings("gt_loss_weight=0.5"))
    assert store.take(["A"], settings()).priors == []
    assert len(store.take(["A"], settings("gt_loss_weight=0.5")).priors) == 5


@pytest.mark.parametrize(("sampler", "count"), [("tpe", 5), ("gp", 0)])
def test_what_only_this_study_searches_is_missing_from_the_observations(store, sampler, count):
    """GP models what all complete trials have: with such an observation it would never model the new parameter."""
    store.write("A", FIVE, settings())
    taken = store.take(["A"], settings(f"sampler={sampler}", "search.temperature=1.0..4.0"))
    assert len(taken.priors) == count and all("temperature" not in trial.params for trial in taken.priors)


def test_what_only_the_earlier_study_searched_must_be_the_value_that_holds_here(store):
    def warmer(trial):
        return {**ofa(trial), "temperature": trial.suggest_categorical("temperature", [1.0, 2.0])}

    params = [{**given, "temperature": 1.0 + number % 2} for number, given in enumerate(FIVE)]
    store.write("A", params, settings(), function=warmer)
    taken = store.take(["A"], settings())
    assert [trial.user_attrs["from"] for trial in taken.priors] == ["A/0", "A/2", "A/4"]
    assert taken.priors[0].params == FIVE[0] and taken.priors[0].user_attrs["searched"]["temperature"] == 1.0


def test_several_objectives_bring_all_their_values(store):
    both = settings(objectives=["val/top1", "val/loss"])
    store.write("A", FIVE, both)
    taken = store.take(["A"], both)
    assert [trial.values for trial in taken.priors] == [[value] * 2 for value in (49.5, 50.5, 52.5, 53.5)]
    assert "4 observations" in taken.notes[0], "Optuna has no pruned trials of several objectives with values"


def test_several_studies_come_in_their_order(store):
    store.write("A", FIVE[:2], settings())
    store.write("B", FIVE[3:], settings(), data="another")
    taken = store.take(["B", "A"], settings())
    assert taken.guesses == [FIVE[4], FIVE[3], FIVE[1], FIVE[0]]
    assert [note.split(":")[0] for note in taken.notes] == ["warm start from B", "warm start from A"]
    assert {trial.user_attrs["from"] for trial in taken.priors} == {"A/0", "A/1"}


def test_guesses_that_come_to_the_same_are_taken_once(store):
    store.write("A", [FIVE[1], FIVE[1], FIVE[0], FIVE[0], FIVE[1]], settings(), data="another")
    assert store.take(["A"], settings()).guesses == [FIVE[1], FIVE[0]]


def problems(store, *names, function=ofa):
    with pytest.raises(InputError) as caught:
        store.take(names, settings(), function=function)
    return caught.value.problems


def test_studies_that_are_not_there_are_told_with_near_names(store):
    assert problems(store, "gone") == [
        f"--warm-start: there is no study 'gone' in MLflow at {store.uri} or in {store.storage}"
    ]
    store.write("digits-vit", FIVE, settings(), kept=False)
    store.write("local", FIVE, settings(), tracked=False)
    lines = problems(store, "digits-vid", "nothing", "digits-vit")
    assert len(lines) == 2 and lines[0].endswith("; did you mean digits-vit?")
    assert lines[1].endswith("; there are digits-vit, local")


def test_an_experiment_that_is_no_study_of_ours_is_none(store):
    store.write("A", FIVE, settings())
    reading.connect(store.uri).create_experiment("theirs")
    assert problems(store, "theirs")[0].startswith("--warm-start: there is no study 'theirs'")


def test_a_study_without_a_complete_trial_is_refused(store):
    ledger = Ledger(store.storage / "A" / "trials")
    ledger.save(TrialRecord("0", "trial", {"distiller": "ofa"}, {"eps": 1.0}))
    assert problems(store, "A") == ["--warm-start: study 'A' has no complete trial"]


def test_a_study_that_shares_no_parameter_is_refused(store):
    store.write("A", FIVE, settings())

    def other(trial):
        return {"temperature": trial.suggest_float("temperature", 1.0, 2.0)}

    assert problems(store, "A", function=other) == [
        "--warm-start: study 'A' shares no parameter with this space: it searched all_stages, eps, ofa_loss_weight, "
        "this one searches temperature"
    ]


def test_hundreds_of_parameters_come_whole_through_the_tags(store):
    many = {f"parameter_{number:03}": 0.123456789012345 + number for number in range(400)}

    def wide(trial):
        for name, value in many.items():
            trial.suggest_float(name, value - 1.0, value + 1.0)
        return {"eps": 1.5}

    store.write("A", [many], settings(), function=wide, kept=False)
    assert store.take(["A"], settings(), function=wide).guesses == [many]


def test_more_runs_than_a_request_gives_are_all_read(store, monkeypatch):
    monkeypatch.setattr(reading, "PAGE", 2)
    store.write("A", FIVE, settings(), kept=False)
    assert len(store.take(["A"], settings()).priors) == 5


def test_a_choice_that_is_gone_takes_its_value_alone_and_no_study_counts_twice(store):
    def wider(trial):
        return {**ofa(trial), "projector": trial.suggest_categorical("projector", ["conv", "pooled"])}

    def narrower(trial):
        return {**ofa(trial), "projector": trial.suggest_categorical("projector", ["token", "pooled"])}

    store.write("A", [{**one, "projector": "conv"} for one in FIVE], settings(), function=wider)
    taken = store.take(["A", "A"], settings(), function=narrower)
    assert taken.guesses == [FIVE[4], FIVE[3], FIVE[1]] and len(taken.notes) == 1
