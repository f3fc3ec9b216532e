"""A study that goes on with other ranges, on real journals: what its earlier trials keep."""

import os

import optuna
import pytest
from optuna.trial import TrialState

from search.journal import carry_over, changed_fields
from search.ledger import RUNNING, Ledger, TrialRecord
from search.objective import TOP1, Objective
from search.optuna_study import kept_guesses, load_study, open_study, tell
from search.space import SearchSpace
from search.storage import JOURNAL
from trainables.config import TrialConfig
from trainables.errors import InputError

ONE, TWO = [Objective(TOP1, True)], [Objective(TOP1, True), Objective("val/loss", False)]


def ofa(trial):
    fields = {"eps": trial.suggest_float("eps", 0.8, 2.5)}
    if trial.suggest_categorical("stage1", [True, False]):
        fields["ofa_loss_weight"] = trial.suggest_float("ofa_loss_weight", 0.1, 1.0)
    return fields


def space(function=ofa, **overrides):
    return SearchSpace(function, overrides, {})


class Folder:
    """A study's folder and what happens to it, session by session."""

    def __init__(self, folder, objectives=ONE, sampler="tpe"):
        self.folder, self.objectives, self.sampler = folder, objectives, sampler
        self.ledger = Ledger(folder / "trials")

    def open(self, **begin):
        return open_study(self.folder, "s", self.sampler, 0, self.objectives, **begin)

    def ask(self, study, space, guess=None):
        """The next trial as a record; with a guess, that one."""
        if guess:
            study.enqueue_trial(guess)
        trial = study.ask()
        space(trial)
        objectives = {one.metric: one.maximize for one in self.objectives}
        record = TrialRecord(str(trial.number), "trial", {"epochs": 2}, trial.params, objectives, trial.number)
        self.ledger.save(record)
        return record

    def end(self, study, record, epochs=2, error=None):
        for epoch in range(1, epochs + 1):
            record.add({"epoch": epoch, TOP1: 50.0 + record.number + epoch, "val/loss": 1.0})
        record.finish(error)
        self.ledger.save(record)
        tell(study, record)

    def carry(self, space, **options):
        return carry_over(self.folder, space, 0, self.sampler, **options)

    @property
    def trials(self):
        return load_study(self.folder / JOURNAL).trials

    @property
    def logs(self):
        return sorted(path.name for path in self.folder.glob("optuna*"))


GUESSES = [
    {"eps": 0.9, "stage1": True, "ofa_loss_weight": 0.5},  # complete
    {"eps": 1.5, "stage1": False},  # pruned
    {"eps": 1.7, "stage1": True, "ofa_loss_weight": 0.2},  # failed
    {"eps": 2.2, "stage1": False},  # running
]


@pytest.fixture
def begun(tmp_path):
    """A study with a trial of each state, and two guesses that wait."""
    one = Folder(tmp_path)
    study = one.open(first_guesses=[])
    records = [one.ask(study, space(), guess) for guess in GUESSES]
    one.end(study, records[0])
    one.end(study, records[1], epochs=1)
    one.end(study, records[2], epochs=1, error="out of memory")
    study.enqueue_trial({"eps": 1.2, "stage1": True})
    study.enqueue_trial({"eps": 2.4})
    return one


def told(trial):
    return (
        trial.number, trial.state, trial.values, trial.intermediate_values, trial.user_attrs, trial.datetime_start,
        trial.datetime_complete,
    )  # fmt: skip


def test_what_did_not_change_leaves_the_journal_alone(begun):
    before = (begun.folder / JOURNAL).read_bytes()
    assert begun.carry(space()) == []
    assert (begun.folder / JOURNAL).read_bytes() == before and begun.logs == [JOURNAL]


def test_numbers_are_kept_by_their_value(tmp_path):
    """The command line's 1 is the space's 1.0, in a range as among choices; True is neither."""

    def choices(trial):
        return {"eps": trial.suggest_categorical("eps", [1, 1.5, True]), "k": trial.suggest_float("k", 0.0, 4.0)}

    def before(trial):
        return {"eps": trial.suggest_float("eps", 0.8, 2.5), "k": trial.suggest_int("k", 1, 3)}

    begun = Folder(tmp_path)
    study = begun.open(first_guesses=[])
    for guess in ({"eps": 1.0, "k": 2}, {"eps": 1.5, "k": 3}, {"eps": 1.2, "k": 1}):
        begun.end(study, begun.ask(study, space(before), guess))
    (note, _) = begun.carry(space(choices))
    assert note.endswith("2 of 3 trials keep it")
    kept = [trial.params for trial in begun.trials]
    assert kept == [{"eps": 1, "k": 2.0}, {"eps": 1.5, "k": 3.0}, {"k": 1.0}]
    assert [type(value) for value in kept[0].values()] == [int, float], "as the choices and the range have them"


def test_a_study_without_a_journal_has_nothing_to_carry_over(tmp_path):
    assert Folder(tmp_path).carry(space()) == [] and Folder(tmp_path).logs == []


def test_a_narrower_range_keeps_each_trial_and_the_values_within(begun):
    before = begun.trials
    assert begun.carry(space(eps="1.0..2.0")) == ["search.eps: 1.0..2.0 instead of 0.8..2.5; 2 of 4 trials keep it"]
    after = begun.trials
    assert [told(trial) for trial in after] == [told(trial) for trial in before]
    assert [trial.state for trial in after] == [
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, *[TrialState.WAITING] * 2
    ]  # fmt: skip
    assert [trial.params for trial in after[:4]] == [
        {"stage1": True, "ofa_loss_weight": 0.5}, {"eps": 1.5, "stage1": False}, GUESSES[2], {"stage1": False}
    ]  # fmt: skip
    assert [trial.system_attrs["fixed_params"] for trial in after[4:]] == [{"eps": 1.2, "stage1": True}, {}]
    assert {str(trial.distributions["eps"]) for trial in after if "eps" in trial.params} == {
        str(optuna.distributions.FloatDistribution(1.0, 2.0))
    }
    assert begun.logs == ["optuna-1.log", JOURNAL]
    assert [trial.params for trial in load_study(begun.folder / "optuna-1.log").trials[:4]] == GUESSES


def test_what_a_warm_start_gave_is_kept_in_the_new_journal(tmp_path):
    one = Folder(tmp_path)
    study = one.open(first_guesses=GUESSES[:1], warm=GUESSES)
    one.end(study, one.ask(study, space()))
    one.carry(space(eps="1.0..2.0"))
    assert one.logs == ["optuna-1.log", JOURNAL] and kept_guesses(tmp_path) == GUESSES


def test_the_study_goes_on_in_the_new_range_and_with_what_waited(begun):
    begun.carry(space(eps="1.0..2.0"))
    study = begun.open(first_guesses=[{"eps": 1.5}, {"eps": 1.2}])  # had by a trial, and by one that waits
    assert len(study.trials) == 6
    running = begun.ledger.records["3"]
    assert running.state == RUNNING
    begun.end(study, running)
    assert study.trials[3].state == TrialState.COMPLETE and study.trials[3].value == 55.0
    waited = begun.ask(study, space(eps="1.0..2.0"))
    assert waited.number == 4 and waited.params["eps"] == 1.2 and waited.params["stage1"] is True
    drawn = [begun.ask(study, space(eps="1.0..2.0")) for _ in range(12)]
    assert all(1.0 <= record.params["eps"] <= 2.0 for record in drawn) and drawn[0].number == 5


def test_the_model_works_in_the_new_range(tmp_path):
    """Optuna's grouped TPE would go on with the range that it saw first, and each draw beyond would be random."""
    one = Folder(tmp_path)
    study = one.open()
    for _ in range(12):
        one.end(study, one.ask(study, space()))
    one.carry(space(eps="0.8..5.0"))
    study = one.open()
    trial = study.ask()
    space(eps="0.8..5.0")(trial)
    assert trial.relative_search_space["eps"] == optuna.distributions.FloatDistribution(0.8, 5.0)


def test_a_range_that_is_widened_again_brings_everything_back(begun):
    before = begun.trials
    begun.carry(space(eps="1.0..2.0"))
    assert begun.carry(space()) == ["search.eps: 0.8..2.5 instead of 1.0..2.0; 4 of 4 trials keep it"]
    assert [trial.params for trial in begun.trials] == [trial.params for trial in before]
    assert begun.logs == ["optuna-1.log", "optuna-2.log", JOURNAL]


def test_only_saying_it_changes_nothing(begun):
    before = (begun.folder / JOURNAL).read_bytes()
    assert len(begun.carry(space(eps="1.0..2.0"), write=False)) == 1
    assert (begun.folder / JOURNAL).read_bytes() == before and begun.logs == [JOURNAL]


def test_a_choice_that_is_gone_takes_its_value_and_nothing_else(begun):
    notes = begun.carry(space(stage1="False|null"))
    assert notes[0] == "search.stage1: False|None instead of True|False; 2 of 4 trials keep it"
    assert [trial.params for trial in begun.trials[:4]] == [{"eps": 0.9}, GUESSES[1], {"eps": 1.7}, GUESSES[3]]
    assert notes[1:] == ["search.ofa_loss_weight: searched no more; 2 trials had it"], "no choice leads there"


def test_a_parameter_that_is_searched_no_more_is_left_out(begun):
    assert begun.carry(space(eps="1.3")) == ["search.eps: searched no more; 4 trials had it"]
    assert all("eps" not in trial.params for trial in begun.trials)
    assert begun.trials[4].system_attrs["fixed_params"] == {"stage1": True}


def test_a_new_parameter_is_told_and_leaves_the_trials_as_they_are(begun):
    before = begun.trials
    assert begun.carry(space(lr="1e-4..1e-2")) == ["search.lr: new, 0.0001..0.01 (log); no earlier trial has it"]
    assert [trial.params for trial in begun.trials] == [trial.params for trial in before] and begun.logs == [JOURNAL]


def test_another_kind_of_number_does_not_fit(begun):
    def whole(trial):
        return {"eps": trial.suggest_int("eps", 1, 3), "s": trial.suggest_categorical("stage1", [True, False])}

    notes = begun.carry(space(whole))
    assert notes[0] == "search.eps: 1..3 instead of 0.8..2.5; 0 of 4 trials keep it"
    assert [trial.params for trial in begun.trials[:4]] == [{"stage1": guess["stage1"]} for guess in GUESSES]


def test_one_is_no_true(begun):
    def numbers(trial):
        return {"e": trial.suggest_float("eps", 0.8, 2.5), "s": trial.suggest_categorical("stage1", [0, 1])}

    begun.carry(space(numbers))
    assert all("stage1" not in trial.params for trial in begun.trials)


def test_a_gate_before_a_parameter_does_not_take_it_away(begun):
    def gated(trial):
        per_stage = trial.suggest_categorical("gate", [True, False])
        return {"eps": trial.suggest_float("eps", 0.8, 2.5) if per_stage else 1.0, **stage(trial)}

    def stage(trial):
        return {"stage": trial.suggest_categorical("stage1", [True, False])}

    begun.carry(space(gated))
    assert [trial.params["eps"] for trial in begun.trials[:4]] == [guess["eps"] for guess in GUESSES]


def test_a_branch_that_random_draws_rarely_meet_is_kept(tmp_path):
    def rare(trial):
        gates = [trial.suggest_categorical(f"gate{number}", [False, True]) for number in range(8)]
        return {"eps": trial.suggest_float("eps", 0.8, 2.5) if all(gates) else 1.0}

    one = Folder(tmp_path)
    study = one.open()
    one.end(study, one.ask(study, space(rare), {**{f"gate{number}": True for number in range(8)}, "eps": 1.5}))
    assert one.carry(space(rare)) == []
    assert one.trials[0].params["eps"] == 1.5


def test_a_space_without_a_trial_in_common_is_refused_and_the_journal_stays(begun):
    def other(trial):
        return {"temperature": trial.suggest_float("temperature", 1.0, 2.0)}

    before = (begun.folder / JOURNAL).read_bytes()
    with pytest.raises(InputError) as caught:
        begun.carry(space(other))
    assert caught.value.problems == [
        "search: none of the parameters of the 4 earlier trials (eps, ofa_loss_weight, stage1) fits this space; start "
        "a new study, or give the ranges that it had"
    ]
    assert (begun.folder / JOURNAL).read_bytes() == before and begun.logs == [JOURNAL]


def test_trials_without_parameters_have_nothing_that_would_have_to_fit(tmp_path):
    one = Folder(tmp_path)
    study = one.open()
    one.end(study, one.ask(study, space(lambda trial: {})))
    one.carry(space())
    assert [trial.params for trial in one.trials] == [{}]


def test_several_objectives_keep_all_their_values(tmp_path):
    one = Folder(tmp_path, TWO)
    study = one.open()
    one.end(study, one.ask(study, space(), GUESSES[1]))
    one.end(study, one.ask(study, space(), GUESSES[0]), epochs=1)
    one.carry(space(eps="1.0..2.0"))
    assert [trial.values for trial in one.trials] == [[52.0, 1.0], None]
    assert [direction.name for direction in load_study(one.folder / JOURNAL).directions] == ["MAXIMIZE", "MINIMIZE"]


def test_a_trial_that_the_space_cannot_make_does_not_hinder_the_others(begun):
    def fragile(trial):
        fields = ofa(trial)
        assert trial.params["eps"] != 1.7
        return fields

    assert begun.carry(space(fragile, eps="1.0..2.0")) == [
        "search.eps: 1.0..2.0 instead of 0.8..2.5; 2 of 4 trials keep it"
    ]


@pytest.mark.parametrize("moment", ["link", "replace"])
def test_whenever_it_is_cut_off_the_journal_is_whole(begun, monkeypatch, moment):
    before = begun.trials

    def cut_off(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, moment, cut_off)
        with pytest.raises(KeyboardInterrupt):
            begun.carry(space(eps="1.0..2.0"))
    assert begun.trials == before
    assert begun.carry(space(eps="1.0..2.0")) == ["search.eps: 1.0..2.0 instead of 0.8..2.5; 2 of 4 trials keep it"]
    assert len(begun.trials) == 6 and not list(begun.folder.glob("*.partial*"))


def test_cut_off_after_a_trial_was_written_the_rest_is_written_anew(begun, monkeypatch):
    def cut_off(self, trials):
        self.add_trial(next(iter(trials)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(optuna.Study, "add_trials", cut_off)
        with pytest.raises(KeyboardInterrupt):
            begun.carry(space(eps="1.0..2.0"))
    begun.carry(space(eps="1.0..2.0"))
    assert [trial.number for trial in begun.trials] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("sampler", ["gp", "cmaes", "nsga2", "nsga3", "qmc", "tpe", "random"])
def test_every_sampler_goes_on_in_a_changed_space(tmp_path, sampler):
    one = Folder(tmp_path, sampler=sampler)
    study = one.open()
    for _ in range(12):
        one.end(study, one.ask(study, space()))
    notes = one.carry(space(eps="1.0..2.0", lr="1e-4..1e-2"))
    kept = sum(1.0 <= trial.params["eps"] <= 2.0 for trial in study.trials)
    assert notes[0].endswith(f"{kept} of 12 trials keep it") and 0 < kept < 12
    assert (
        notes[-1] == f"sampler {sampler} models the parameters that all complete trials have, so not eps, lr; tpe "
        "does (--set sampler=tpe)"
    ) == (sampler in ("gp", "cmaes", "nsga2", "nsga3"))
    study = one.open()
    for _ in range(12):
        one.end(study, one.ask(study, space(eps="1.0..2.0", lr="1e-4..1e-2")))
    assert all(1.0 <= trial.params["eps"] <= 2.0 for trial in study.trials[12:])


def test_brute_force_tries_the_points_of_the_space_of_now(tmp_path):
    def letters(trial):
        return {"a": trial.suggest_categorical("a", [1, 2]), "b": trial.suggest_int("b", 1, 2)}

    def more(trial):
        return {"a": trial.suggest_categorical("a", [1, 2]), "b": trial.suggest_int("b", 2, 3)}

    one = Folder(tmp_path, sampler="brute")
    study = one.open()
    for _ in range(3):
        one.end(study, one.ask(study, space(letters)))
    one.carry(space(more))
    study = one.open()
    while not study.sampler.exhausted(study):
        one.end(study, one.ask(study, space(more)))
        assert len(study.trials) <= 7
    fitting = {(trial.params["a"], trial.params["b"]) for trial in study.trials if "b" in trial.params}
    assert fitting == {(1, 2), (1, 3), (2, 2), (2, 3)}
    assert len([trial for trial in study.trials if "b" in trial.params]) == 4, "none twice"


def test_a_torn_last_line_is_dropped_before_the_next(tmp_path):
    open_study(tmp_path, "s", "random", 0, ONE).ask()
    journal = tmp_path / "optuna.log"
    journal.write_bytes(journal.read_bytes()[:-7])  # what a power cut leaves
    open_study(tmp_path, "s", "random", 0, ONE).ask()
    assert len(load_study(journal).trials) == 1, "the torn one is lost, the new one is there"


def test_a_loss_that_trials_have_otherwise_now_is_told(tmp_path):
    config = TrialConfig(teacher="t", student="s", epochs=3)
    ledger = Ledger(tmp_path / "trials")
    for number in range(2):
        ledger.save(TrialRecord(str(number), "trial", config.model_dump(), {"eps": 1.0}))
    assert changed_fields(tmp_path, [config]) == []
    now = config.model_copy(update={"enhance": "target", "eps": [2.0]})
    assert changed_fields(tmp_path, [now]) == ["enhance: target from now on; the 2 trials before had all"]
