"""What a study is estimated to cost, and what a dry run says of its budgets."""

import math
from types import SimpleNamespace

import pytest

from search.contradictions import final_runs
from search.estimate import expected_end, not_estimated, project, scheduler_share, warnings
from search.settings import resolve
from search.study import Scale, Study

TRIAL_S = 100.0


def plan(*sets, **fields):
    fields = {"epochs": 9, "concurrency": 2, "finalists": 0, "baselines": [], "scheduler": "none", **fields}
    study = Study(space=lambda trial: {}, scales={"embedded": Scale(teacher="t", student="s", **fields)})
    settings = resolve(study, {"name": "n", "space": "s.py"}, list(sets))
    names = [name if isinstance(name, str) else name["name"] for name in settings.baselines]
    return SimpleNamespace(
        settings=settings,
        trials=settings.trials,
        baselines=dict.fromkeys(names),
        final_count=final_runs(settings),
    )


def said(made, teacher_s=0.0):
    figures = project(made, TRIAL_S, teacher_s)
    return expected_end(made, figures), warnings(made, figures)


def test_everything_that_is_trained_is_counted():
    made = plan(
        "gpus_per_trial=0.5", "price_per_gpu_hour=4", "money=1000",
        trials=10, baselines=["kd", "scratch"], tune_baselines=3, finalists=2, seeds=5,
    )  # fmt: skip
    figures = project(made, TRIAL_S, teacher_s=60)
    runs = 10 + 2 * (1 + 3) + (2 + 2 * 2) * 5  # of a tuned baseline two are in the final
    assert figures["epochs"] == figures["epochs_min"] == 9 * runs
    assert figures["study_s"] == figures["study_min_s"] == pytest.approx(TRIAL_S * runs / 2)
    assert figures["gpu_hours"] == pytest.approx(0.5 * (TRIAL_S * runs + 60) / 3600)
    assert figures["money"] == pytest.approx(4 * figures["gpu_hours"])
    assert (figures["final_share"], figures["tuned_share"]) == pytest.approx((30 / runs, 6 / runs))


def test_without_a_price_nothing_is_said_of_money():
    assert project(plan("gpus_per_trial=1"), TRIAL_S, 0.0)["money"] is None


def test_what_is_stopped_early_is_trials_alone():
    made = plan(trials=9, scheduler="asha", grace_epochs=1, reduction_factor=3, baselines=["kd"])
    share = (1 + 2 / 3 + 6 / 9) / 9
    figures = project(made, TRIAL_S, 0.0)
    assert figures["epochs"] == 90 and figures["epochs_min"] == round(9 * (9 * share + 1))


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({"scheduler": "none"}, 1.0),
        ({"scheduler": "asha", "grace_epochs": 1, "reduction_factor": 3}, (1 + 2 / 3 + 6 / 9) / 9),
        (
            {
                "scheduler": "hyperband",
                "brackets": 2,
                "reduction_factor": 3,
            },  # trials by exp(-bracket), as `bracket_of`
            ((1 + 2 / 3 + 6 / 9) + (3 + 6 / 3) / math.e) / 9 / (1 + 1 / math.e),
        ),
        (
            {"scheduler": "hyperband", "brackets": 5, "reduction_factor": 9, "epochs": 3},
            (1 + 2 / 9) / 3,
        ),  # has room for one
        ({"scheduler": "median", "grace_epochs": 3}, 6 / 9),
    ],
)
def test_the_share_that_a_scheduler_leaves(fields, share):
    assert scheduler_share(plan(**fields).settings) == pytest.approx(share)


def test_without_budgets_the_trials_end_it():
    assert said(plan(trials=16)) == ("trials (16)", [])
    assert said(plan(trials=16, target=90.0, patience=5))[0] == "trials (16), unless target or patience comes first"


def test_a_time_budget_too_short_for_the_trials():
    end, lines = said(plan("time_budget=600", trials=64), teacher_s=100.0)
    assert end == "time_budget"
    # 64 trials of 100 s on 2 lanes after 100 s of fitting; the lanes have 500 s, and so 10 trials.
    assert lines == ["time_budget (10.0 min) ends the search after about 10 of 64 trials (the whole study: 55.0 min)"]


def test_a_budget_that_only_early_stopping_keeps():
    end, lines = said(plan("total_epochs=90", trials=20, scheduler="asha", grace_epochs=1))
    assert end == "trials (20), or total_epochs where the scheduler stops few"
    assert lines == [
        "total_epochs (90 epochs) is enough for the 20 trials only where the scheduler stops as it may; were none "
        "stopped, 10"
    ]


def test_of_several_budgets_the_tightest_ends_the_study():
    end, lines = said(plan("total_epochs=90", "time_budget=200", "gpu_hours=0.25", "gpus_per_trial=1", trials=64))
    assert end == "time_budget"
    assert [line.split()[0] for line in lines] == ["time_budget", "gpu_hours", "total_epochs"]
    assert (
        "gpu_hours (0.25 GPU-hours) ends the search after about 9 of 64 trials (the whole study: 1.78 GPU-hours)"
        in lines[1]
    )


def test_a_budget_that_the_final_alone_uses_up():
    made = plan("money=1", "price_per_gpu_hour=9", "gpus_per_trial=1", finalists=2, seeds=2, baselines=["kd"])
    end, lines = said(made)
    assert end == "money"
    assert lines == [
        "money (1.00) is less than what teacher, baselines and final take without any trial, about 1.75; raise it, or "
        "lower finalists, seeds or tune_baselines"
    ]


def test_of_a_simulated_study_epochs_and_trials_alone_are_told():
    made = plan("total_epochs=90", "time_budget=200", "gpu_hours=1", "gpus_per_trial=1", trials=64, patience=5)
    figures = project(made, None)
    assert figures["epochs"] == 9 * 64 and not {"study_s", "gpu_hours", "money"} & figures.keys()
    assert not_estimated(made, figures) == ["time_budget", "gpu_hours"]
    assert expected_end(made, figures) == "total_epochs, unless patience or time_budget or gpu_hours comes first"
    assert warnings(made, figures) == [
        "total_epochs (90 epochs) ends the search after about 10 of 64 trials (the whole study: 576 epochs)"
    ]
