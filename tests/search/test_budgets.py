"""What budgets count, when they end a search, and when a study may go on."""

import pytest

from search.account import Account
from search.budgets import Budgets, all_ran, check_left
from search.contradictions import budget_notes, final_runs, least_epochs
from search.ledger import Ledger, TrialRecord
from search.objective import Objective
from search.settings import resolve
from search.study import Scale, Study
from trainables.errors import InputError

EPOCHS, EPOCH_S = 4, 10.0
GPU = {"gpus_per_trial": 0.5}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def settings(*sets, **fields):
    fields = {"epochs": EPOCHS, "concurrency": 2, "finalists": 0, "baselines": [], **fields}
    study = Study(space=lambda trial: {}, scales={"embedded": Scale(teacher="t", student="s", **fields)})
    return resolve(study, {"name": "n", "space": "s.py"}, list(sets))


class Searched:
    """A study of which the test says what happens."""

    def __init__(self, folder, maximize=True, **fields):
        self.settings, self.clock = settings(**fields), Clock()
        self.objective = Objective("val/top1" if maximize else "val/loss", maximize)
        self.folder, self.ledger = folder, Ledger(folder / "trials")
        self.account = Account(folder, self.clock)
        runs = final_runs(self.settings)
        self.budgets = Budgets(self.settings, self.ledger, self.account, self.objective, runs)

    def start(self, trial_id, role="trial"):
        record = TrialRecord(
            str(trial_id), role, {"epochs": EPOCHS}, {}, {self.objective.metric: self.objective.maximize}
        )
        self.ledger.save(record)
        self.budgets.at_work(record)
        return record

    def train(self, record, *values):
        for value in values:
            self.clock.now += EPOCH_S
            epoch = record.epoch + 1
            record.add({"epoch": epoch, self.objective.metric: value, "time/epoch_s": EPOCH_S})
            self.ledger.save(record)

    def end(self, record, error=None):
        record.finish(error)
        self.ledger.save(record)

    def whole(self, trial_id, value, role="trial"):
        record = self.start(trial_id, role)
        self.train(record, *[value] * EPOCHS)
        self.end(record)
        return record


@pytest.fixture
def searched(tmp_path):
    return lambda **fields: Searched(tmp_path, **fields)


def test_everything_spent_is_counted(searched):
    study = searched(price_per_gpu_hour=3.0, **GPU)
    study.clock.now += 100  # start-up: nobody's GPU
    study.whole("scratch", 80, role="baseline")
    study.whole("0", 90)
    pruned = study.start("1")
    study.train(pruned, 50)
    study.end(pruned)
    spent = study.budgets.spent()
    assert (spent.trials, spent.epochs, spent.wall_s) == (2, 9, 190)
    assert spent.gpu_hours == pytest.approx(0.5 * 90 / 3600)
    assert spent.money == pytest.approx(3 * 0.5 * 90 / 3600)
    assert study.budgets.reason() is None, "there is no limit"


def test_two_lanes_count_twice(searched):
    study = searched(**GPU)
    one, _ = study.start("0"), study.start("1")
    study.train(one, 1, 2)
    assert study.budgets.spent().gpu_hours == pytest.approx(2 * 0.5 * 20 / 3600)
    assert study.budgets.spent().money is None


def test_packed_trials_hold_one_lane_together(searched):
    study = searched(pack=2, **GPU)
    one, _ = study.start("0"), study.start("1")
    study.train(one, 1, 2)
    assert study.budgets.spent().gpu_hours == pytest.approx(1 * 20 / 3600)


def test_what_a_session_held_is_not_counted_anew_where_the_next_one_packs(searched):
    first = searched(**GPU)
    first.whole("0", 90)
    first.account.write()
    spent = first.budgets.spent().gpu_hours
    assert searched(pack=2, **GPU).budgets.spent().gpu_hours == pytest.approx(spent) and spent > 0


def test_a_second_session_knows_what_the_first_spent(searched):
    first = searched(target=95.0)
    first.whole("0", 96)
    running = first.start("1")
    first.train(running, 50)
    first.account.write()
    second = searched(target=95.0)
    spent = second.budgets.spent()
    assert (spent.trials, spent.epochs, spent.wall_s) == (2, 5, 50)
    assert "trial 0" in second.budgets.reason()
    assert second.budgets.admits() is False
    assert second.budgets.admits(3, fresh=False) is True, "what was left off comes to its end"


def test_a_record_begun_anew_does_not_undo_what_it_spent(searched):
    study = searched()
    failed = study.start("kd", role="baseline")
    study.train(failed, 1, 2)
    study.end(failed, error="it broke")
    study.ledger.save(TrialRecord("kd", "baseline", {"epochs": EPOCHS}, {}, started=failed.started + 9))
    assert study.budgets.spent().epochs == 2
    study.account.write()
    assert searched().budgets.spent().epochs == 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"time_budget": 75.0}, "stopped by the time budget (75 s)"),
        ({"gpu_hours": 0.01, **GPU}, "stopped by the budget of 0.01 GPU-hours"),
        ({"money": 0.03, "price_per_gpu_hour": 3.0, **GPU}, "stopped by the money (0.03 at 3 a GPU-hour)"),
    ],
)
def test_what_runs_is_cut_off_where_a_hard_budget_is_used_up(searched, fields, said):
    study = searched(**fields)
    study.whole("0", 90)
    assert study.budgets.cut() is None and study.budgets.admits() is True
    study.train(study.start("1"), 1, 2, 3, 4)
    assert study.budgets.cut() == study.budgets.reason() == said
    assert study.budgets.admits() is False and study.budgets.admits(1, fresh=False) is False


def test_the_search_leaves_the_final_its_time(searched):
    # The final: (2 finalists + 1 baseline) x 1 seed on 2 lanes, in 2 rounds of 4 epochs, and the epoch in hand: 90 s.
    study = searched(time_budget=205.0, finalists=2, seeds=1, baselines=["scratch"])
    study.whole("scratch", 80, role="baseline")
    study.whole("0", 90)
    study.train(study.start("1"), 1, 2, 3)
    assert study.budgets.cut() is None, "110 s are spent, and 115 s may be"
    study.train(study.ledger.records["1"], 4)
    assert study.budgets.cut() == "stopped by the time budget (205 s)"
    assert study.budgets.final().field == "time_budget"
    assert study.budgets.cut() is None, "the reserve is the final's"
    study.whole("0-seed1", 90, role="finalist")
    study.whole("scratch-seed1", 90, role="finalist")
    assert study.budgets.cut() is None
    study.clock.now += 10
    assert study.budgets.cut() == "stopped by the time budget (205 s)", "the final is cut off where even that is over"


def test_the_final_has_to_get_under_way_as_well(searched):
    study = searched(time_budget=205.0, finalists=1, seeds=1)
    study.clock.now += 30
    study.train(study.start("0"), 1)  # the final needs 5 epochs of 10 s, and another 30 s before them
    study.clock.now = 205 - 80
    assert study.budgets.cut() is None
    study.clock.now += 1
    assert study.budgets.cut()


def test_a_final_too_long_for_the_budget_leaves_half_of_it_to_the_search(searched):
    study = searched(time_budget=100.0, finalists=3, seeds=9)
    study.train(study.start("0"), 1, 2, 3, 4)
    assert study.budgets.cut() is None
    study.train(study.start("1"), 1, 2)
    assert study.budgets.cut()


def test_a_simulated_final_takes_no_time_whatever_its_curves_say(searched):
    study = searched(time_budget=100.0, finalists=3, seeds=9, simulate="synthetic")
    study.train(study.start("0"), 1, 2, 3, 4)
    study.train(study.start("1"), 1, 2, 3, 4)
    assert study.budgets.cut() is None


def test_before_an_epoch_is_measured_nothing_is_reserved(searched):
    study = searched(time_budget=100.0, finalists=3, seeds=1)
    study.start("0")
    study.clock.now += 99
    assert study.budgets.cut() is None


def test_a_reason_stays_though_the_estimate_changes(searched):
    study = searched(time_budget=200.0, finalists=1, seeds=2)
    slow = study.start("0")
    slow.add({"epoch": 1, "val/top1": 1.0, "time/epoch_s": 100.0})
    study.ledger.save(slow)
    study.clock.now += 101
    assert study.budgets.cut()
    slow.add({"epoch": 2, "val/top1": 1.0, "time/epoch_s": 0.0})
    study.ledger.save(slow)
    assert study.budgets.cut()


def test_the_total_of_epochs_is_never_overrun(searched):
    # 4 for the final's only run; 11 trials' epochs remain: two whole trials and what a stopped one leaves.
    study = searched(total_epochs=15, finalists=1, seeds=1)
    assert study.budgets.admits() is True
    first = study.start("0")
    assert study.budgets.admits() is True
    second = study.start("1")
    assert study.budgets.admits() is None, "a running trial may yet be stopped early"
    study.train(first, 1)
    study.end(first)  # stopped by the scheduler: 3 epochs are free again
    assert study.budgets.admits() is True
    study.train(second, 1, 2, 3, 4)
    study.end(second)
    study.whole("2", 5)
    assert study.budgets.admits() is False
    assert study.budgets.cut() is None, "nothing that runs is cut off"
    assert study.budgets.reason() == "stopped by the total of 15 epochs: no other run fits beside the final"
    assert study.budgets.final().field == "total_epochs"
    assert study.budgets.admits(4, fresh=False) is True
    study.whole("1-seed1", 5, role="finalist")
    assert study.budgets.spent().epochs == 13 and study.budgets.admits(4, fresh=False) is False


def test_a_target_lets_what_runs_come_to_its_end(searched):
    study = searched(target=94.0)
    study.whole("scratch", 99, role="baseline")
    study.whole("0", 93.99)
    assert study.budgets.admits() is True
    running = study.start("1")
    study.whole("12", 94.06)
    assert study.budgets.admits() is False
    assert study.budgets.reason() == "target reached: val/top1 94.06 >= 94 by trial 12"
    assert study.budgets.cut() is None
    study.train(running, 1, 2, 3, 4)


def test_a_target_that_is_minimized(searched):
    study = searched(maximize=False, target=0.5)
    study.whole("0", 0.51)
    assert study.budgets.reason() is None
    study.whole("1", 0.5)
    assert study.budgets.reason() == "target reached: val/loss 0.5 <= 0.5 by trial 1"


def test_a_pruned_trial_reaches_no_target(searched):
    study = searched(target=94.0)
    pruned = study.start("0")
    study.train(pruned, 99)
    study.end(pruned)
    assert study.budgets.reason() is None


def test_patience_counts_what_ended_since_the_best(searched):
    study = searched(patience=3)
    failed = study.start("0")
    study.end(failed, error="it broke")
    for number in range(1, 5):
        study.end(study.start(f"early{number}"), error="it broke")
    assert study.budgets.reason() is None, "there is nothing yet to be better than"
    study.whole("5", 80)
    study.whole("6", 80)  # no better
    pruned = study.start("7")
    study.train(pruned, 99)
    study.end(pruned)
    study.whole("kd", 70, role="baseline")
    study.ledger.save(pruned)  # the tracking thread saves a record's run id
    assert study.budgets.reason() is None
    study.whole("8", 81)
    for number in (9, 10):
        study.whole(number, 81)
    assert study.budgets.reason() is None
    study.end(study.start("11"), error="it broke")
    assert study.budgets.reason() == "no better trial in the last 3"


def test_a_budget_that_the_last_run_used_up_ended_nothing(searched):
    study = searched(time_budget=30.0)
    study.whole("0", 90)
    assert study.budgets.cut()
    study.budgets.all_done()
    assert study.budgets.final() is None


def ended(study, field, reason="why"):
    study.account.end(field, getattr(study.settings, field), reason)
    study.account.written()


@pytest.mark.parametrize(
    ("field", "value", "more", "fix"),
    [
        ("time_budget", 60.0, 61.0, "raise it: --time-budget SECONDS"),
        ("total_epochs", 40, 44, "raise it: --set total_epochs=N"),
        ("patience", 3, 4, "raise it: --set patience=N"),
        ("target", 90.0, 91.0, "set a further one, or none: --set target=null"),
    ],
)
def test_a_study_goes_on_only_with_more_of_what_ended_it(searched, field, value, more, fix):
    study = searched(**{field: value})
    ended(study, field)
    with pytest.raises(InputError) as caught:
        check_left(study.folder, study.settings, maximize=True)
    assert caught.value.problems == [f"{field}: it ended this study (why); {fix}"]
    for raised in (more, None):
        check_left(study.folder, study.settings.model_copy(update={field: raised}), maximize=True)


def test_a_minimized_target_goes_on_with_a_smaller_one(searched):
    study = searched(maximize=False, target=0.5)
    ended(study, "target")
    for target, refused in ((0.5, True), (0.6, True), (0.4, False), (0.0, False)):
        changed = study.settings.model_copy(update={"target": target})
        if refused:
            with pytest.raises(InputError):
                check_left(study.folder, changed, maximize=False)
        else:
            check_left(study.folder, changed, maximize=False)


def test_a_study_that_ran_all_its_trials_goes_on(searched):
    study = searched()
    ending = all_ran(16, None, grid=False, ran=16)
    study.account.end(ending.field, ending.limit, ending.reason)
    check_left(study.folder, study.settings, maximize=True)
    assert ending.reason == "all 16 trials have run"


@pytest.mark.parametrize(
    ("asked", "points", "grid", "ran", "said"),
    [
        (1, None, False, 1, "its 1 trial has run"),
        (50, 6, True, 6, "all 6 points of the grid have run"),
        (1, 1, True, 1, "its 1 point of the grid has run"),
        (50, 4, True, 6, "all 4 points of the grid have run"),  # two are points no more
        (20, 6, False, 8, "all 6 points of the space have run"),
        (3, 6, False, 3, "all 3 trials have run"),
        (5, None, False, 12, "12 trials have run, more than the 5 asked for"),
        (1, None, False, 2, "2 trials have run, more than the 1 asked for"),
    ],
)
def test_how_many_have_run_is_said_right(asked, points, grid, ran, said):
    assert all_ran(asked, points, grid, ran).reason == said


def test_patience_that_the_last_trial_used_up_ended_nothing(searched):
    study = searched(patience=1)
    study.whole(0, 90.0)
    study.whole(1, 70.0)
    assert study.budgets.reason() == "no better trial in the last 1"
    study.budgets.all_done()
    assert study.budgets.ending is None


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["money=5", "gpus_per_trial=1"], "money: without a price nothing is counted; add --set price_per_gpu_hour"),
        (["gpu_hours=5"], "gpu_hours: trials hold no GPU (gpus_per_trial is 0), so it would never act"),
        (["money=5", "price_per_gpu_hour=2"], "money: trials hold no GPU (gpus_per_trial is 0)"),
        (["target=101"], "target: 101 cannot be reached, as val/top1 is between 0 and 100"),
        (["objectives=[nll]", "target=-1"], "target: -1 cannot be reached, as val/loss is 0 or more"),
        (
            ["total_epochs=59", "baselines=[kd, scratch]", "finalists=1", "seeds=2", "tune_baselines=1"],
            "total_epochs: 59 are fewer than one trial, the baselines and the final's 10 runs need, 60; raise it",
        ),
        (["time_budget=0"], "time_budget: 0 must be greater than 0"),
    ],
)
def test_budgets_that_contradict_are_refused(sets, said):
    with pytest.raises(InputError) as caught:
        settings(*sets)
    (problem,) = caught.value.problems
    assert problem.startswith(said)


def test_the_least_that_is_asked_for_is_enough():
    fields = dict(baselines=["kd", "scratch"], finalists=1, seeds=2, tune_baselines=1)
    assert least_epochs(settings("total_epochs=60", **fields)) == 60
    assert final_runs(settings(finalists=9, trials=3, seeds=2)) == 6


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["price_per_gpu_hour=2", "gpus_per_trial=1"], "price_per_gpu_hour without money"),
        (["price_per_gpu_hour=2"], "price_per_gpu_hour: trials hold no GPU"),
        (["patience=16", "trials=16"], "patience 16 never acts, as there are 16 trials in all"),
        (["target=0.94"], "target 0.94: val/top1 is in percent"),
    ],
)
def test_budgets_that_may_not_be_meant_are_noted(sets, said):
    (note,) = budget_notes(settings(*sets), Objective("val/top1", True))
    assert note.startswith(said)
    assert budget_notes(settings("patience=15", "trials=16", "target=94"), Objective("val/top1", True)) == []


def test_asking_looks_at_no_record(searched):
    study = searched(time_budget=1e9, target=100.0, patience=10**6, total_epochs=10**9)
    for number in range(300):
        study.whole(number, 50)
    study.ledger.records = None  # asked at every turn of Tune's loop, with thousands of trials
    assert study.budgets.admits() is True and study.budgets.cut() is None
    assert study.budgets.spent().epochs == 1200


@pytest.mark.parametrize("soft", [{"target": 80.0}, {"patience": 1}])
def test_a_hard_budget_cuts_off_what_still_runs_after_a_soft_one(searched, soft):
    study = searched(time_budget=100.0, **soft)
    study.whole(0, 90.0)
    study.whole(1, 70.0)
    late = study.start(2)
    assert study.budgets.reason() and study.budgets.cut() is None, "it comes to its end"
    study.clock.now = 101.0
    assert "time budget" in study.budgets.cut()
    study.train(late)
    study.budgets.all_done()
    ending = study.budgets.ending
    assert (ending and ending.field) == ("target" if "target" in soft else None), "nothing was cut off after all"


def test_a_run_without_an_epoch_left_is_none_of_full_length(searched):
    study = searched(total_epochs=EPOCHS)
    study.whole(0, 90.0)
    assert study.budgets.admits(0, fresh=False) is True and study.budgets.admits() is False


def test_a_study_whose_results_were_not_written_goes_on(searched):
    study = searched(target=80.0)
    study.account.end("target", 80.0, "why")
    check_left(study.folder, study.settings, True)
    study.account.written()
    with pytest.raises(InputError, match="target: it ended this study"):
        check_left(study.folder, study.settings, True)
