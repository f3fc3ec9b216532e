"""What the study's scheduler decides, on Ray Tune's own classes; Tune's trials are stand-ins."""

import copy
import math
import pickle
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.utils.object_cache import _ObjectCache

from search.ledger import FAILED, RUNNING, Ledger, TrialRecord
from search.objective import TOP1, Objective
from search.rungs import bracket_of, restarts, rungs, scheduler_notes
from search.schedulers import StopsNone, make_scheduler
from search.settings import resolve
from search.study import Scale, Study
from trainables.errors import InputError

GO_ON, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
EPOCHS = 9  # with a grace of 1 and a factor of 3, the rungs are at epochs 1, 3 and 9


def settings(**fields):
    models = {"teacher": "t", "student": "s", "epochs": EPOCHS, "grace_epochs": 1, "reduction_factor": 3}
    study = Study(space=lambda trial: {}, scales={"embedded": Scale(**{**models, **fields})})
    return resolve(study, {"name": "n", "space": "s.py"}, [])


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


def record(ledger, trial_id, *values, role="trial", ended=True, maximize=True):
    """A trial of an earlier session, with its objective by epoch."""
    made = TrialRecord(trial_id, role, {"epochs": EPOCHS}, {}, {TOP1: maximize})
    for epoch, value in enumerate(values, 1):
        made.add({"epoch": epoch, TOP1: value})
    if ended:
        made.finish()
    ledger.save(made)
    return made


class TuneTrial(SimpleNamespace):
    """What the schedulers need of a trial of Tune's."""

    __hash__ = object.__hash__  # Tune's can be keys


class Tune:
    """Tells a scheduler of trials as Tune does."""

    def __init__(self, ledger, maximize=True, **fields):
        self.ledger, self.trials, self.controller = ledger, 0, None
        self.scheduler = make_scheduler(settings(**fields), ledger, Objective(TOP1, maximize))

    def add(self, trial_id, role="trial"):
        if trial_id not in self.ledger.records:
            record(self.ledger, trial_id, role=role, ended=False)
        self.trials += 1
        trial = TuneTrial(trial_id=f"tune_{self.trials}", config={"trial_id": trial_id, "role": role})
        self.scheduler.on_trial_add(None, trial)
        return trial

    def report(self, trial, epoch, value):
        return self.scheduler.on_trial_result(self.controller, trial, {"epoch": epoch, TOP1: value})

    def complete(self, trial, epoch, value):
        self.scheduler.on_trial_complete(None, trial, {"epoch": epoch, TOP1: value})


def test_a_weak_trial_is_stopped_at_its_first_rung(ledger):
    tune = Tune(ledger)
    for name in "abc":
        assert tune.report(tune.add(name), 1, 90.0) == GO_ON
    assert tune.report(tune.add("weak"), 1, 10.0) == STOP
    assert tune.report(tune.add("strong"), 1, 95.0) == GO_ON


def test_no_trial_is_stopped_before_the_grace_or_between_rungs(ledger):
    tune = Tune(ledger, grace_epochs=2)
    strong, weak = tune.add("strong"), tune.add("weak")
    for epoch in (1, 2):
        assert tune.report(strong, epoch, 90.0) == GO_ON
    assert tune.report(weak, 1, 10.0) == GO_ON
    assert tune.report(weak, 2, 10.0) == STOP
    lucky = tune.add("lucky")
    assert [tune.report(lucky, epoch, value) for epoch, value in enumerate((0.0, 91.0, 1.0, 2.0, 3.0), 1)] == [
        GO_ON
    ] * 5


def test_a_full_length_trial_ends_by_itself(ledger):
    tune = Tune(ledger)
    trial = tune.add("a")
    assert [tune.report(trial, epoch, 50.0) for epoch in range(1, EPOCHS + 1)] == [GO_ON] * EPOCHS


def test_a_baseline_is_never_stopped(ledger):
    tune = Tune(ledger)
    for name in "abc":
        strong = tune.add(name)
        for epoch in range(1, EPOCHS + 1):
            tune.report(strong, epoch, 90.0)
    baseline = tune.add("scratch", role="baseline")
    assert [tune.report(baseline, epoch, 10.0) for epoch in range(1, EPOCHS + 1)] == [GO_ON] * EPOCHS
    tune.complete(baseline, EPOCHS, 10.0)
    assert tune.report(tune.add("weak"), 1, 10.0) == STOP


def test_a_baseline_does_not_count_among_those_a_trial_is_compared_with(ledger):
    record(ledger, "scratch", *[99.0] * EPOCHS, role="baseline")
    tune = Tune(ledger)
    baseline = tune.add("kd", role="baseline")
    for epoch in range(1, EPOCHS + 1):
        tune.report(baseline, epoch, 99.0)
    tune.complete(baseline, EPOCHS, 99.0)
    trial = tune.add("a")
    assert [tune.report(trial, epoch, 10.0) for epoch in range(1, EPOCHS + 1)] == [GO_ON] * EPOCHS


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_decides_nothing(ledger, value):
    tune = Tune(ledger)
    for name in "abc":
        tune.report(tune.add(name), 1, 50.0)
    assert tune.report(tune.add("broken"), 1, value) == GO_ON
    assert tune.report(tune.add("fair"), 1, 50.0) == GO_ON
    assert tune.report(tune.add("weak"), 1, 49.0) == STOP


def test_a_trial_that_ends_with_no_number_leaves_later_ones_judged_as_before(ledger):
    tune = Tune(ledger)
    for name in "abc":
        tune.report(tune.add(name), 1, 50.0)
    broken = tune.add("broken")
    tune.report(broken, 1, math.nan)
    tune.complete(broken, 1, math.nan)
    assert tune.report(tune.add("fair"), 1, 50.0) == GO_ON
    assert tune.report(tune.add("weak"), 1, 49.0) == STOP


def test_earlier_trials_fill_the_rungs_of_a_resumed_study(ledger):
    for name in "abc":
        record(ledger, name, 80.0, 85.0, 90.0, 91.0)
    tune = Tune(ledger)
    assert tune.report(tune.add("weak"), 1, 10.0) == STOP
    later = tune.add("later")
    assert tune.report(later, 1, 81.0) == GO_ON
    assert tune.report(later, 2, 81.0) == GO_ON
    assert tune.report(later, 3, 86.0) == STOP, "the third epoch's values are compared, not the first one's"


def test_the_rungs_are_filled_whatever_state_earlier_trials_ended_in(ledger):
    record(ledger, "complete", *[80.0] * EPOCHS)
    record(ledger, "pruned", 80.0)
    record(ledger, "failed", 80.0, math.nan)
    assert ledger.records["failed"].state == FAILED
    tune = Tune(ledger)
    assert tune.report(tune.add("weak"), 1, 79.0) == STOP
    assert tune.report(tune.add("fair"), 1, 80.0) == GO_ON


def test_a_trial_that_goes_on_is_not_judged_again_at_a_rung_it_passed(ledger):
    record(ledger, "0", 50.0, 60.0, ended=False)
    assert ledger.records["0"].state == RUNNING
    for name in "abc":
        record(ledger, name, 90.0, 91.0, 92.0)
    tune = Tune(ledger)
    resumed = tune.add("0")
    assert tune.report(resumed, 2, 60.0) == GO_ON, "the rung at epoch 1 is behind it"
    assert tune.report(resumed, 3, 70.0) == STOP, "the one at epoch 3 is not"
    assert tune.report(tune.add("1"), 2, 60.0) == STOP, "a trial without a past would have been stopped"


def test_a_trial_that_goes_on_keeps_the_value_it_had_at_the_rung(ledger):
    record(ledger, "0", 50.0, 90.0, ended=False)
    tune = Tune(ledger)
    resumed = tune.add("0")
    assert tune.report(resumed, 2, 90.0) == GO_ON
    assert tune.report(tune.add("1"), 1, 55.0) == GO_ON, "better than the 50 of epoch 1, whatever came after"
    assert tune.report(tune.add("2"), 1, 49.0) == STOP


def test_a_trial_cut_off_before_its_first_report_starts_like_a_new_one(ledger):
    record(ledger, "0", ended=False)
    for name in "abc":
        record(ledger, name, 90.0)
    tune = Tune(ledger)
    assert tune.report(tune.add("0"), 1, 10.0) == STOP


def test_without_a_scheduler_nothing_is_stopped(ledger):
    for name in "abc":
        record(ledger, name, 90.0)
    scheduler = make_scheduler(settings(scheduler="none"), ledger, Objective(TOP1, True))
    assert type(scheduler) is StopsNone
    assert StopsNone.on_trial_result is FIFOScheduler.on_trial_result


@pytest.mark.parametrize("name", ["none", "asha", "hyperband", "median"])
def test_a_proxy_that_comes_free_is_for_the_next_trial_and_none_is_dropped(ledger, name):
    scheduler = make_scheduler(settings(scheduler=name, concurrency=2), ledger, Objective(TOP1, True))
    starting, fresh, later = (TuneTrial(trial_id=f"t_0000{n}", placement_group_factory="cpu") for n in range(3))
    cache = _ObjectCache(may_keep_one=True)
    controller = SimpleNamespace(_pending_trials={starting}, _trial_to_actor={starting: "actor"}, _actor_cache=cache)
    assert scheduler.choose_trial_to_run(controller) is None  # its own proxy is on its way
    controller._pending_trials |= {later, fresh}
    assert scheduler.choose_trial_to_run(controller) is fresh
    assert [cache.cache_object("cpu", proxy) for proxy in "abc"] == [True, True, False]
    assert list(cache.flush_cached_objects()) == []


@pytest.mark.parametrize(("epochs", "grace"), [(1, 1), (1, 5), (2, 2), (3, 10)])
def test_studies_shorter_than_their_grace_have_a_scheduler_too(ledger, epochs, grace):
    tune = Tune(ledger, epochs=epochs, grace_epochs=grace)
    first, weak = tune.add("first"), tune.add("weak")
    assert [tune.report(first, epoch, 90.0) for epoch in range(1, epochs + 1)] == [GO_ON] * epochs
    assert [tune.report(weak, epoch, 10.0) for epoch in range(1, epochs)] == [GO_ON] * (epochs - 1)


NAMES = ("asha", "hyperband", "median")


def judging(name):
    """Settings by which a scheduler judges at epoch 1 already, all trials in one bracket."""
    return {"scheduler": name, "brackets": 1}


def decisions(tune, trial, *values):
    return [tune.report(trial, epoch, value) for epoch, value in enumerate(values, 1)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("maximize", [True, False], ids=["max", "min"])
def test_the_weak_are_stopped_and_the_strong_go_on(ledger, name, maximize):
    tune = Tune(ledger, maximize, **judging(name))
    sign = 1 if maximize else -1
    for number in range(4):
        decisions(tune, tune.add(str(number)), *[sign * 50.0] * EPOCHS)
    assert tune.report(tune.add("4"), 1, sign * 90.0) == GO_ON
    assert tune.report(tune.add("5"), 1, sign * 10.0) == STOP


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ["baseline", "finalist", "delivery"])
def test_all_but_trials_are_neither_judged_nor_counted(ledger, name, role):
    tune = Tune(ledger, **judging(name))
    for number in range(4):
        other = tune.add(f"other-{number}", role=role)
        assert decisions(tune, other, *[99.0] * EPOCHS) == [GO_ON] * EPOCHS
        tune.complete(other, EPOCHS, 99.0)
    assert decisions(tune, tune.add("0"), *[1.0] * EPOCHS) == [GO_ON] * EPOCHS, "there was nothing to compare it with"
    for number in range(1, 5):
        decisions(tune, tune.add(str(number)), *[50.0] * EPOCHS)
    assert decisions(tune, tune.add("last", role=role), *[0.0] * EPOCHS) == [GO_ON] * EPOCHS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("maximize", [True, False], ids=["max", "min"])
def test_earlier_results_are_replayed_with_their_direction(ledger, name, maximize):
    sign = 1 if maximize else -1
    for number in range(4):
        record(ledger, str(number), *[sign * 50.0] * 4, maximize=maximize)
    record(ledger, "kd", *[sign * 99.0] * EPOCHS, role="baseline", maximize=maximize)
    tune = Tune(ledger, maximize, **judging(name))
    assert tune.report(tune.add("4"), 1, sign * 51.0) == GO_ON
    assert tune.report(tune.add("5"), 1, sign * 49.0) == STOP


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_counted_even_at_the_end(ledger, name, value):
    tune = Tune(ledger, **judging(name))
    for number in range(4):
        decisions(tune, tune.add(str(number)), *[50.0] * EPOCHS)
    broken = tune.add("4")
    assert decisions(tune, broken, value, value) == [GO_ON] * 2
    tune.complete(broken, 2, value)
    assert tune.report(tune.add("5"), 1, 50.0) == GO_ON
    assert tune.report(tune.add("6"), 1, 49.0) == STOP


@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_stopped_in_the_last_epoch_which_is_over(ledger, name):
    tune = Tune(ledger, **judging(name), epochs=9, grace_epochs=9)
    for number in range(5):
        decisions(tune, tune.add(str(number)), *[50.0] * 9)
    assert decisions(tune, tune.add("5"), *[1.0] * 9) == [GO_ON] * 9


def test_the_median_rule_waits_for_the_grace_and_for_three_others(ledger):
    tune = Tune(ledger, scheduler="median", grace_epochs=3)
    for number in range(2):
        decisions(tune, tune.add(str(number)), *[50.0] * EPOCHS)
    assert decisions(tune, tune.add("2"), *[10.0] * EPOCHS) == [GO_ON] * EPOCHS, "two others are too few"
    assert decisions(tune, tune.add("3"), 10.0, 10.0, 10.0) == [GO_ON, GO_ON, STOP], "the median is 50"


def test_the_median_rule_compares_the_best_so_far_with_the_others_means(ledger):
    tune = Tune(ledger, scheduler="median")
    for number in range(3):
        decisions(tune, tune.add(str(number)), 40.0, 60.0, 80.0, 80.0)  # means 40, 50, 60, 65
    trial = tune.add("3")
    assert decisions(tune, trial, 55.0, 20.0) == [GO_ON, GO_ON], "its best is 55"
    assert tune.report(trial, 3, 20.0) == STOP


def test_the_median_rule_counts_no_result_twice_when_a_trial_ends(ledger):
    tune = Tune(ledger, scheduler="median")
    for number in range(3):
        trial = tune.add(str(number))
        decisions(tune, trial, 20.0, 80.0)
        tune.complete(trial, 2, 80.0)  # the mean is 50; counted twice, 60
    trial = tune.add("3")
    tune.report(trial, 1, 20.0)
    assert tune.report(trial, 2, 55.0) == GO_ON


def test_the_median_rule_never_pauses(ledger):
    """A pause would need a checkpoint of Tune's; Ray's rule pauses where others wait for a slot."""
    tune = Tune(ledger, scheduler="median")
    tune.controller = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status="PENDING")])
    assert decisions(tune, tune.add("0"), *[50.0] * EPOCHS) == [GO_ON] * EPOCHS


def test_a_trial_that_goes_on_under_the_median_rule_keeps_its_best(ledger):
    for number in range(3):
        record(ledger, str(number), 40.0, 60.0, 80.0, 80.0)
    record(ledger, "3", 75.0, ended=False)
    tune = Tune(ledger, scheduler="median")
    assert tune.report(tune.add("3"), 2, 10.0) == GO_ON
    assert tune.report(tune.add("4"), 2, 10.0) == STOP


def hyperband(**fields):
    return settings(**{"scheduler": "hyperband", "epochs": 27, "brackets": 3, **fields})


def test_hyperbands_brackets_share_the_trials_as_rays_do():
    share = [bracket_of(hyperband(), str(number)) for number in range(300)]
    assert [round(share.count(bracket) / 300, 1) for bracket in range(3)] == [0.7, 0.2, 0.1]
    early = share[:12]
    assert {early.count(bracket) for bracket in range(3)} <= {1, 2, 3, 7, 8, 9} and set(early) == {0, 1, 2}


def test_a_trial_is_in_the_same_bracket_in_every_session_and_another_seed_shares_otherwise(ledger):
    numbers = [str(number) for number in range(40)]
    share = [bracket_of(hyperband(), number) for number in numbers]
    assert share == [bracket_of(hyperband(trials=99), number) for number in numbers]
    assert share != [bracket_of(hyperband(seed=1), number) for number in numbers]
    tune = Tune(ledger, scheduler="hyperband", epochs=27)
    for number in numbers[:12]:
        trial = tune.add(number)
        assert tune.scheduler._trial_info[trial.trial_id] is tune.scheduler._brackets[share[int(number)]]


def test_a_trial_is_compared_with_those_of_its_bracket_alone(ledger):
    brackets = {bracket: [] for bracket in range(3)}
    for number in range(60):
        brackets[bracket_of(hyperband(), str(number))].append(str(number))
    for number in brackets[0][:4]:
        record(ledger, number, 90.0)
    for number in brackets[1][:4]:
        record(ledger, number, 50.0, 50.0, 50.0)
    tune = Tune(ledger, scheduler="hyperband", epochs=27)
    assert decisions(tune, tune.add(brackets[0][4]), 60.0) == [STOP]
    assert decisions(tune, tune.add(brackets[1][4]), 60.0, 60.0, 60.0) == [GO_ON] * 3, "its first rung is at epoch 3"
    assert decisions(tune, tune.add(brackets[1][5]), 40.0, 40.0, 40.0) == [GO_ON, GO_ON, STOP]
    assert decisions(tune, tune.add(brackets[2][0]), *[1.0] * 9) == [GO_ON] * 9, "the first one at its rung"


@pytest.mark.parametrize(
    ("epochs", "grace", "factor", "wanted"), [(9, 1, 3, 3), (8, 1, 2, 5), (36, 12, 3, 3), (5, 5, 2, 2), (100, 3, 4, 9)]
)
def test_the_rungs_that_are_told_are_rays(ledger, epochs, grace, factor, wanted):
    fields = {"epochs": epochs, "grace_epochs": grace, "reduction_factor": factor, "brackets": wanted}
    told = settings(scheduler="hyperband", **fields)
    scheduler = make_scheduler(told, ledger, Objective(TOP1, True))
    rays = [sorted(rung for rung, _ in bracket._rungs if rung < epochs) for bracket in scheduler._brackets]
    assert rays[0] == rungs(told) == rungs(settings(scheduler="asha", **fields))
    assert all(rays) or len(rays) == 1, "each bracket has a rung"
    assert rays == [rungs(told)[number:] for number in range(len(rays))] and len(rays) <= wanted


def test_schedulers_without_rungs_have_none():
    assert rungs(settings(scheduler="median")) == rungs(settings(scheduler="none")) == []
    assert restarts(settings()) == [], "the schedule is of full length"
    assert restarts(settings(stopping_schedule="rung")) == [1, 3]
    assert restarts(hyperband(stopping_schedule="rung")) == [1, 3, 9], "those of all brackets, for every trial"


@pytest.mark.parametrize("name", ["none", "median"])
def test_a_schedule_by_rungs_needs_a_scheduler_with_rungs(name):
    with pytest.raises(InputError) as caught:
        settings(stopping_schedule="rung", scheduler=name)
    assert caught.value.problems == [
        f"stopping_schedule: 'rung' starts the learning rate anew at the scheduler's rungs, and '{name}' has none; "
        "take scheduler=asha or hyperband, or stopping_schedule=full"
    ]
    with pytest.raises(InputError, match="leave one of the two out"):
        settings(stopping_schedule="rung", sched_restarts=[2])


def test_what_the_scheduler_does_otherwise_is_said():
    assert scheduler_notes(settings()) == []
    assert scheduler_notes(hyperband()) == [
        "hyperband compares trials first after epoch 1 (67% of them), 3 (24% of them), 9 (9% of them)"
    ]
    several = {"objectives": ["top1", "parameters"]}
    assert scheduler_notes(settings(**several, scheduler="none")) == []
    assert (
        "asha stops trials by val/top1 alone: what is best in cost/student_params"
        in scheduler_notes(settings(**several))[0]
    )
    assert scheduler_notes(settings(scheduler="hyperband", epochs=36, grace_epochs=12)) == [
        "hyperband has 1 bracket, not 3: a bracket needs a rung of its own, and before epoch 36 they are at 12 "
        "(grace_epochs, then times reduction_factor)"
    ]
    assert scheduler_notes(settings(stopping_schedule="rung")) == [
        "the learning rate starts anew after epoch 1, 3, baselines' too"
    ]


def test_a_scheduler_that_can_stop_nobody_is_said():
    fields = {"epochs": 9, "grace_epochs": 9, "objectives": ["top1", "parameters"], "sampler": "brute"}
    for name in ("asha", "hyperband", "median"):
        assert scheduler_notes(settings(**fields, scheduler=name)) == [
            f"{name} stops no trial: grace_epochs 9 leaves none of the 9 epochs to stop one before "
            "(--set grace_epochs=N, fewer than epochs)"
        ]
    assert scheduler_notes(settings(**fields, scheduler="none")) == []
    assert scheduler_notes(settings(**fields, smoke=True)) == [], "which has no epochs to spare"
    (note,) = scheduler_notes(settings(epochs=9, grace_epochs=20, stopping_schedule="rung"))
    assert "; nor does the learning rate start anew (--set" in note


@pytest.mark.parametrize("sampler", ["grid", "brute"])
def test_that_points_may_be_stopped_is_said(sampler):
    assert scheduler_notes(settings(sampler=sampler)) == [
        f"sampler {sampler} tries every point, but asha may stop points before their last epoch "
        "(--set scheduler=none trains all in full)"
    ]
    assert scheduler_notes(settings(sampler=sampler, scheduler="none")) == []


@pytest.mark.parametrize("name", NAMES)
def test_tune_may_copy_and_pickle_every_scheduler(ledger, name):
    scheduler = make_scheduler(settings(scheduler=name), ledger, Objective(TOP1, True))
    assert copy.deepcopy(scheduler) is scheduler
    assert vars(pickle.loads(pickle.dumps(scheduler))) == {}
