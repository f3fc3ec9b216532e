import math
from io import StringIO

import optuna
import pandas
import pytest
import yaml
from rich.console import Console

from search import plots, results
from search.ledger import Ledger, TrialRecord

optuna.logging.set_verbosity(optuna.logging.WARNING)


def add(ledger, trial_id, value, epochs=3, role="trial", error=None, of="", **config):
    config = {"epochs": 3, "distiller": "ofa", "stages": [1, 2], "eps": 1.5, "temperature": 2.0} | config
    params = {"eps": 1.5, "stage1": True, "lr": 1e-05} if role == "trial" else {}
    record = TrialRecord(trial_id, role, config, params, of=of, started=1000.0 + len(ledger.records))
    for epoch in range(1, epochs + 1):
        metrics = {"epoch": epoch, "val/top1": value - 3 + epoch, "val/loss": 0.5, "val/agreement": 88.0}
        metrics["time/epoch_s"] = 60 / epochs
        metrics |= {"cost/branch_params": 1000} if epoch == 1 else {}
        metrics |= {"test/top1": value} if role == "finalist" and epoch == epochs else {}
        record.add(metrics)
    record.finish(error=error)
    ledger.save(record)
    return record


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "trials")
    add(ledger, "scratch", 91.0, role="baseline")
    add(ledger, "kd", 92.0, role="baseline")
    for number, value in enumerate([90.0, 92.5, 91.7, 93.31, 93.0, 92.2]):
        add(ledger, str(number), value)
    add(ledger, "6", 89.0, epochs=2)
    add(ledger, "7", 0.0, epochs=0, error="out of memory")
    add(ledger, "8", 93.1, stages=[], eps=[1.5])
    add(ledger, "9", 92.4, stages=[1, 3], eps=[1.5, 0.5, 2.0])
    return ledger


def test_the_frame_has_a_row_a_trial(ledger, tmp_path):
    frame = results.trials_frame(ledger).set_index("trial_id")
    assert list(frame.index) == ["scratch", "kd", *map(str, range(10))]
    assert frame.loc["3", "val/top1"] == frame.loc["3", "best/val_top1"] == 93.31
    assert frame.loc["6", "state"] == "pruned"
    assert frame.loc["6", "epochs"] == 2
    assert frame.loc["7", "reason"] == "out of memory"
    assert frame.loc["8", "stages"] == "none"
    assert frame.loc["9", "stages"] == "1,3"
    assert frame.loc["9", "eps_logits"] == 2.0
    assert (frame["cost/branch_params"].drop("7") == 1000).all()
    assert (frame["seconds"].drop("7") == 60).all() and frame.loc["7", "seconds"] == 0
    assert {"lr", "stage1", "temperature", "distiller"} <= set(frame.columns)

    results.write_trials_csv(ledger, tmp_path / "trials.csv")
    read = pandas.read_csv(tmp_path / "trials.csv")
    assert read["stages"].tolist()[-2:] == ["none", "1,3"]
    assert len(read) == 12


def test_the_frame_ends_with_the_finalists_figures_of_the_test_split(ledger):
    before = list(results.trials_frame(ledger).columns)
    add(ledger, "3-seed1", 91.0, role="finalist", of="3", seed=1)
    add(ledger, "10", 90.0).params["late"] = 1  # of an extension
    frame = results.trials_frame(ledger).set_index("trial_id", drop=False)
    assert list(frame.columns) == [*before, "late", "test/top1"]
    assert frame.loc["3-seed1", "test/top1"] == 91.0 and frame["test/top1"].count() == 1


def test_an_empty_study_has_empty_tables(tmp_path):
    ledger = Ledger(tmp_path)
    assert results.trials_frame(ledger).empty
    assert results.final_table(ledger).empty
    assert results.verdict(ledger, 450) == "No trial completed, so there is nothing to compare."
    plots.plot_history(ledger, tmp_path / "history.png")


def test_the_final_table_puts_the_best_beside_the_baselines(ledger):
    add(ledger, "hinton", 0.0, epochs=0, role="baseline", error="broken")
    frame = results.final_table(ledger)
    assert frame["name"].tolist() == ["trial 3 (best)", "scratch", "kd", "hinton (failed)"]
    assert frame["over scratch"].round(2).tolist()[:3] == [2.31, 0.0, 1.0]
    console = Console(file=StringIO(), width=100)
    results.print_table(console, frame)
    text = console.file.getvalue()
    assert "93.31" in text and "+2.31" in text and "0.5000" in text
    assert text.splitlines()[-1].split()[:4] == ["hinton", "(failed)", "-", "-"]


def test_the_final_table_has_the_finals_winner_too(ledger):
    for trial_id, value in (("3-seed1", 91.0), ("4-seed1", 93.0)):
        add(ledger, trial_id, value, role="finalist", of=trial_id.split("-")[0], seed=1)
    names = results.final_table(ledger)["name"].tolist()
    assert names == ["trial 3 (best here)", "trial 4", "scratch", "kd"]
    (best,) = results.trials_frame(ledger).query("trial_id == '4'").to_dict("records")
    assert best["best/val_top1"] == 93.0


def test_another_student_has_no_difference_from_scratch(ledger):
    for record in ledger.records.values():
        record.config |= {"student": "large" if record.trial_id == "3" else "small", "student_kwargs": {}}
    frame = results.final_table(ledger).set_index("name")
    assert frame["over scratch"].isna().tolist() == [True, False, False] and frame.loc["kd", "over scratch"] == 1.0


def test_the_lead_tells_of_the_objectives_that_did_not_choose(ledger):
    assert results.other_objectives(ledger) == ""
    for record in ledger.records.values():
        record.objectives = {"val/top1": True, "cost/branch_params": False, "val/loss": False}
    said = " Trial 3 was chosen by val/top1 alone"
    assert results.other_objectives(ledger) == f"{said}; it is the whole Pareto front, so none is better in anything."
    for trial_id in "14":
        ledger.records[trial_id].history[0]["cost/branch_params"] = 10
    ledger.records["2"].history[0]["cost/branch_params"] = 5
    text = results.lead(ledger, None, None, 4500)
    assert text.endswith(
        f"{said}; of the Pareto front's 3 trials 2 are better in cost/branch_params and none is better in val/loss."
    )
    assert results.other_objectives(Ledger(ledger.folder / "none")) == ""


def test_the_verdict_when_the_best_trial_wins(ledger):
    assert results.verdict(ledger, 4500) == (
        "The best trial (3) beats the student trained alone by 2.31 points and beats kd by 1.31 points on the holdout "
        "(4500 images, so up to ±1.1 points of sampling error at 95%); it was chosen as the best of 8 on these same "
        "images and seeds were not repeated."
    )
    few = results.verdict(ledger, 2000)
    assert "alone by 2.31 points and is 1.31 points above kd, which is no more than chance explains, on the" in few


def test_the_verdict_tells_of_earlier_studies(ledger):
    text = results.lead(ledger, None, None, 4500, {"pat": 8})
    assert text.endswith("seeds were not repeated. The search for it began with what 8 trials of pat had found.")


def test_the_verdict_of_a_trial_that_a_baseline_beats(ledger):
    add(ledger, "kd-1", 95.0, role="baseline", of="kd")  # of its own search
    assert "and does NOT beat kd: it is 1.69 points behind on the holdout" in results.verdict(ledger, 4500)


@pytest.mark.parametrize(("value", "words"), [(90.0, "it is 1.00 points behind"), (91.0, "they are equal")])
def test_the_verdict_when_it_does_not(tmp_path, value, words):
    ledger = Ledger(tmp_path)
    add(ledger, "scratch", 91.0, role="baseline")
    add(ledger, "0", value)
    text = results.verdict(ledger, 450)
    assert text.startswith(f"The best trial (0) does NOT beat the student trained alone: {words} on the holdout (450")


def test_the_verdict_without_a_baseline(tmp_path):
    ledger = Ledger(tmp_path)
    add(ledger, "0", 90.0)
    assert "no baseline was asked for, so there is nothing" in results.verdict(ledger, 450)
    add(ledger, "scratch", 91.0, epochs=0, role="baseline", error="broken")
    assert "no baseline completed, so there is nothing" in results.verdict(ledger, 450)


def is_picture(path):
    from matplotlib.image import imread

    pixels = imread(path)
    return pixels.shape[1] == 1200 and pixels.std() > 0.02


def make_study(trials):
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))

    def objective(trial):
        value = trial.suggest_float("eps", 0.8, 2.5)
        if trial.suggest_categorical("eps_per_stage", [True, False]):
            value += 0.1 * trial.suggest_float("eps_stage1", 0.8, 2.5)
        return value + 0.01 * trial.suggest_float("temperature", 0.5, 8.0, log=True)

    study.optimize(objective, n_trials=trials)
    return study


def test_pictures(ledger, tmp_path):
    plots.plot_history(ledger, tmp_path / "history.png")
    assert is_picture(tmp_path / "history.png")
    shares = plots.plot_importance(make_study(30), tmp_path / "importance.png")
    assert next(iter(shares)) == "eps"
    assert set(shares) == {"eps", "eps_per_stage", "eps_stage1", "temperature"}
    assert is_picture(tmp_path / "importance.png")


def test_importances_that_cannot_be_had_are_a_picture_that_says_so(tmp_path, monkeypatch):
    assert plots.plot_importance(make_study(3), tmp_path / "few.png") is None
    assert is_picture(tmp_path / "few.png")

    def fail(study):
        raise RuntimeError("odd study")

    monkeypatch.setattr(optuna.importance, "get_param_importances", fail)
    assert plots.plot_importance(make_study(5), tmp_path / "failing.png") is None
    assert is_picture(tmp_path / "failing.png")


def test_best_yaml_reads_back_the_same_and_has_dots(ledger, tmp_path):
    settings = {"student": "resmlp_12", "lr": 1e-05, "min_lr": 5e-07, "eps": [1.0, 2.5], "stages": [1, 2], "aa": None}
    path = tmp_path / "best.yaml"
    results.write_best_yaml(ledger.records["3"], settings, path, study="digits")
    text = path.read_text()
    assert text.startswith("# Study digits, trial 3: val/top1 93.31 after 3 epochs.\n")
    assert "lr: 1.0e-05\n" in text
    assert "min_lr: 5.0e-07\n" in text
    assert yaml.safe_load(text) == settings
    assert list(yaml.safe_load(text)) == list(settings)


def test_parameters_in_words():
    assert results.in_words({"eps": 1.5, "stage1": True, "lr": 1e-05}) == "eps=1.5  stage1=True  lr=1e-05"


def test_less_may_be_better(tmp_path):
    """The verdict, the table and the pictures of a study that minimizes the loss."""
    ledger = Ledger(tmp_path / "trials")
    for trial_id, role, value in (("scratch", "baseline", 0.75), ("0", "trial", 0.9), ("1", "trial", 0.5)):
        record = TrialRecord(trial_id, role, {"epochs": 1}, {}, {"val/loss": False})
        record.add({"epoch": 1, "val/loss": value})
        record.finish()
        ledger.save(record)
    text = results.verdict(ledger, 450)
    assert text.startswith("The best trial (1) beats the student trained alone by 0.25 of val/loss on the holdout (450")
    frame = results.final_table(ledger)
    assert frame["name"].tolist() == ["trial 1 (best)", "scratch"] and frame["over scratch"].tolist() == [-0.25, 0.0]
    assert frame.columns.is_unique
    console = Console(file=StringIO(), width=100)
    frame.loc[0, "over scratch"] = -0.0023
    results.print_table(console, frame)
    assert "-0.0023 " in console.file.getvalue() and "+0 " in console.file.getvalue(), "two decimals would be too few"
    assert plots.view_range(ledger) == (pytest.approx(0.1), pytest.approx(1.3))
    plots.plot_history(ledger, tmp_path / "history.png")
    assert is_picture(tmp_path / "history.png")


def test_the_history_is_over_the_trials_numbers(ledger, tmp_path, monkeypatch):
    add(ledger, "11", 10.0, epochs=1)  # stopped far off
    add(ledger, "10", math.nan)
    figure, axes = plots._figure(8, 4.5)
    monkeypatch.setattr(plots, "_figure", lambda *_: (figure, axes))
    plots.plot_history(ledger, tmp_path / "history.png")
    drawn = {one.get_label(): one.get_offsets()[:, 0].tolist() for one in axes.collections}
    trials = {record.trial_id: record.state for record in ledger.of_role("trial")}
    for state in {state for state in trials.values() if state != "running"}:
        found = [x for label, numbers in drawn.items() if label.split(",")[0] == state for x in numbers]
        assert sorted(found) == sorted(int(name) for name, one in trials.items() if one == state)
    assert drawn["pruned, off the scale"][-1] == 11 and drawn["failed, without a value"][-1] == 10
    assert axes.lines[0].get_xdata().tolist()[-1] == 11 and axes.get_xlabel() == "trial"


def test_the_frame_has_every_objective_and_the_best_of_the_first(ledger):
    for record in ledger.records.values():
        record.objectives = {"val/loss": False, "cost/branch_params": False}
    frame = results.trials_frame(ledger).set_index("trial_id")
    assert frame.loc["3", ["val/loss", "best/val_loss", "cost/branch_params"]].tolist() == [0.5, 0.5, 1000]
    assert "best/val_top1" not in frame


def test_the_verdict_where_the_holdouts_size_is_not_known(ledger):
    text = results.verdict(ledger, None)
    assert "by 2.31 points and beats kd by 1.31 points on the holdout; it was chosen" in text


def test_the_importance_of_several_objectives_is_for_the_firsts_best(tmp_path):
    """The best trials by the first objective have `a` in common, the worst ones `b`, the second objective's `c`."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(0))

    def objective(trial):
        a, b, c = (trial.suggest_float(name, 0, 1) for name in "abc")
        return (a if a > 0.8 else -b if b > 0.8 else 0), c

    study.optimize(objective, n_trials=100)
    assert next(iter(plots.plot_importance(study, tmp_path / "importance.png"))) == "a"


def test_the_front_is_a_picture(ledger, tmp_path):
    for record in ledger.records.values():
        record.objectives = {"val/top1": True, "cost/branch_params": False, "val/loss": False}
    plots.plot_front(ledger, tmp_path / "pareto.png")
    assert is_picture(tmp_path / "pareto.png")
