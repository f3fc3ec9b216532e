"""Studies on a virtual clock."""

import itertools
import warnings

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from search.landscape import Synthetic
from search.ledger import COMPLETE, FAILED, PRUNED, Ledger
from search.objective import parse_objectives
from search.study import Scale, Study
from search.tracking.tracker import Tracker
from search.virtual import simulate_study, study_parts
from spaces import parts
from tests.search.test_schedulers import settings
from tests.search.tracking.tracked import STUDY as STUDY_NAME
from tests.search.tracking.tracked import Seen

STUDY = Study(space=parts.search_ofa, scales={"embedded": Scale()})


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def run(curves=None, slots=2, folder=None, stop=lambda state: None, baselines=None, tracker=None, clock=None, **fields):
    resolved = settings(**{"trials": 20, **fields})
    space, compose = study_parts(resolved, STUDY)
    objectives = parse_objectives(resolved.objectives)
    return simulate_study(
        resolved, space, compose, curves or Synthetic(), objectives,
        slots=slots, folder=folder, stop=stop, baselines=baselines, tracker=tracker, clock=clock or (lambda: 0.0),
    )  # fmt: skip


def told(state):
    """All that a study found out, without the wall clock's times."""
    return [(at, epochs, one.trial_id, one.state, one.params, one.history) for at, epochs, one in state.ended]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_gives_the_same_study(sampler):
    assert told(run(sampler=sampler)) == told(run(sampler=sampler))
    assert told(run(sampler=sampler)) != told(run(sampler=sampler, seed=1))


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "qmc"])
def test_the_global_generator_decides_nothing_and_is_not_set_back(sampler):
    studies = []
    for seed in (1, 2):
        np.random.seed(seed)
        studies.append(told(run(sampler=sampler, scheduler="hyperband")))
    assert studies[0] == studies[1]
    before = np.random.get_state()[1].copy()
    run(trials=2, scheduler="none")
    assert (np.random.get_state()[1] == before).all()


def test_all_trials_run_and_the_scheduler_stops_some():
    state = run()
    states = [one.state for _, _, one in state.ended]
    assert len(states) == 20 and {COMPLETE, PRUNED} == set(states)
    assert state.epochs == sum(one.epoch for one in state.ledger.records.values())
    assert [at for at, _, _ in state.ended] == sorted(at for at, _, _ in state.ended)
    assert state.reason == ""


def test_time_is_shared_by_the_slots():
    one, four = run(slots=1, scheduler="none"), run(slots=4, scheduler="none")
    seconds = sum(record.seconds for record in one.ledger.records.values())
    assert one.seconds == pytest.approx(seconds)
    work = sum(record.seconds for record in four.ledger.records.values())
    assert work / 4 <= four.seconds < work / 3


def test_a_predicate_ends_the_search_and_what_runs_is_cut_off():
    state = run(slots=3, scheduler="none", stop=lambda state: "enough" if state.epochs >= 40 else None)
    assert state.epochs == 40 and state.reason == "enough"
    assert not [one for one in state.ledger.records.values() if one.state == "running"]
    cut = [one for one in state.ledger.records.values() if "enough" in one.reason]
    assert len(cut) == 3 and {one.state for one in cut} == {PRUNED}
    assert not state.study.get_trials(states=[TrialState.RUNNING])


def test_failing_and_nan_curves_end_failed_for_all():
    def curves(config, params, epochs, seed):
        curve = Synthetic()(config, params, epochs, seed)
        if config["stages"] == []:
            raise ValueError("no stages")
        if len(config["stages"]) == 1:
            curve[2]["val/loss"] = float("nan")
        if len(config["stages"]) == 2:
            curve[2]["val/top1"] = float("nan")
        return curve

    state = run(curves, trials=60, sampler="random", scheduler="none")
    reasons = {len(one.config["stages"]): one.reason for one in state.ledger.records.values() if one.state == FAILED}
    assert reasons[0] == "ValueError: no stages" and reasons[1] == "the holdout loss is nan in epoch 3"
    optunas = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": FAILED}
    assert [optunas[one.state.name] for one in state.study.trials] == [
        state.ledger.records[str(number)].state for number in range(60)
    ]


def test_baselines_come_first_and_are_never_stopped():
    resolved = settings()
    _, compose = study_parts(resolved, STUDY)
    weak = compose({"stages": [], "distiller": "none"})
    state = run(baselines={"scratch": weak})
    assert state.ledger.records["scratch"].state == COMPLETE
    assert next(iter(state.ledger.records)) == "scratch"


def test_a_study_in_a_folder_goes_on_where_it_was_left(tmp_path):
    first = run(folder=tmp_path, trials=5)
    assert len(first.ended) == 5
    state = run(folder=tmp_path, trials=12)
    assert len(state.ended) == 7
    on_disk = Ledger(tmp_path / "trials")
    assert sorted(map(int, on_disk.records)) == list(range(12))
    assert {one.state for one in on_disk.records.values()} <= {COMPLETE, PRUNED}
    assert len(state.study.trials) == 12 and not state.study.get_trials(states=[TrialState.RUNNING])


def test_first_guesses_are_tried_first():
    guess = {**parts.GUESSES[0]}
    state = run(first_guesses=[guess], slots=1)
    assert guess.items() <= state.ended[0][2].params.items()


def steady(config, params, epochs, seed):
    """Epochs of 10 s, and nobody to be stopped."""
    return [entry | {"time/epoch_s": 10.0, "val/top1": 50.0} for entry in Synthetic()(config, params, epochs, seed)]


def ticking(seconds):
    """A clock by which each piece of the driver's work takes so long."""
    return itertools.count(0.0, seconds).__next__  # read as a piece begins and as it ends


def test_the_drivers_own_time_is_on_the_clock_one_thing_after_another():
    """Two trials of three epochs in two slots: eight pieces of work (two starts, six reports), of 4 s each."""
    idle = run(steady, slots=2, trials=2, epochs=3)
    assert (idle.seconds, idle.own_s) == (30.0, 0.0)
    busy = run(steady, slots=2, trials=2, epochs=3, clock=ticking(4.0))
    # 0: starts 4, 8; reports of 14, 18 with verdicts at 18, 22; of 28, 32 at 32, 36; of 42, 46 at 46, 50
    assert (busy.seconds, busy.own_s) == (50.0, 32.0)
    crowded = run(steady, slots=4, trials=4, epochs=3, clock=ticking(4.0))
    # a turn of four trials takes 16 s, more than their epochs: the driver is never idle after the start
    assert (crowded.seconds, crowded.own_s) == (4 * 4 * 4.0, 4 * 4 * 4.0)
    assert told(busy) != told(idle) and [one[2:] for one in told(busy)] == [one[2:] for one in told(idle)]


def test_a_tracker_is_told_of_each_change(tmp_path):
    folder = tmp_path / STUDY_NAME
    folder.mkdir()
    tracker = Tracker(uri := f"sqlite:///{tmp_path}/mlflow.db", folder)
    try:
        tracker.open_study({}, {}, {}, {}, {}, resume=False)
        state = run(
            folder=folder,
            trials=6,
            tracker=tracker,
            scheduler="none",
            stop=lambda state: "full" if state.epochs >= 40 else None,
        )
    finally:
        left = tracker.close()
    assert left == 0 and state.reason == "full"
    runs = {run.data.tags["trial_id"]: run for run in Seen(uri).children.values()}
    records = state.ledger.records
    assert {one: run.data.tags["state"] for one, run in runs.items()} == {one: records[one].state for one in records}
    assert {one: int(run.data.tags["epochs"]) for one, run in runs.items()} == {
        one: records[one].epoch for one in records
    }
