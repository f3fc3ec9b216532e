"""What the study's scheduler decides, on Ray Tune's own classes; Tune's trials are stand-ins."""

import copy
import math
import pickle
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.ledger import FAILED, RUNNING, Ledger, TrialRecord
from search.objective import TOP1, Objective
from search.schedulers import make_scheduler
from search.settings import resolve
from search.study import Scale, Study

GO_ON, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
EPOCHS = 9  # with a grace of 1 and a factor of 3, the rungs are at epochs 1, 3 and 9


def settings(**fields):
    models = {"teacher": "t", "student": "s", "epochs": EPOCHS, "grace_epochs": 1, "reduction_factor": 3}
    study = Study(space=lambda trial: {}, scales={"embedded": Scale(**{**models, **fields})})
    return resolve(study, {"name": "n", "space": "s.py"}, [])


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


def record(ledger, trial_id, *values, role="trial", ended=True):
    """A trial of an earlier session, with its objective by epoch."""
    made = TrialRecord(trial_id, role, {"epochs": EPOCHS}, {})
    for epoch, value in enumerate(values, 1):
        made.add({"epoch": epoch, TOP1: value})
    if ended:
        made.finish()
    ledger.save(made)
    return made


class Tune:
    """Tells a scheduler of trials as Tune does."""

    def __init__(self, ledger, **fields):
        self.ledger, self.trials = ledger, 0
        self.scheduler = make_scheduler(settings(**fields), ledger, Objective(TOP1, True))

    def add(self, trial_id, role="trial"):
        if trial_id not in self.ledger.records:
            record(self.ledger, trial_id, role=role, ended=False)
        self.trials += 1
        trial = SimpleNamespace(trial_id=f"tune_{self.trials}", config={"trial_id": trial_id, "role": role})
        self.scheduler.on_trial_add(None, trial)
        return trial

    def report(self, trial, epoch, value):
        return self.scheduler.on_trial_result(None, trial, {"epoch": epoch, TOP1: value})

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
    assert type(make_scheduler(settings(scheduler="none"), ledger, Objective(TOP1, True))) is FIFOScheduler


@pytest.mark.parametrize(("epochs", "grace"), [(1, 1), (1, 5), (2, 2), (3, 10)])
def test_studies_shorter_than_their_grace_have_a_scheduler_too(ledger, epochs, grace):
    tune = Tune(ledger, epochs=epochs, grace_epochs=grace)
    first, weak = tune.add("first"), tune.add("weak")
    assert [tune.report(first, epoch, 90.0) for epoch in range(1, epochs + 1)] == [GO_ON] * epochs
    assert [tune.report(weak, epoch, 10.0) for epoch in range(1, epochs)] == [GO_ON] * (epochs - 1)


def test_tune_may_copy_and_pickle_its_set_up(ledger):
    scheduler = make_scheduler(settings(), ledger, Objective(TOP1, True))
    assert copy.deepcopy(scheduler) is scheduler
    assert vars(pickle.loads(pickle.dumps(scheduler))) == {}
