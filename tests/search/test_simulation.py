"""Whole studies over learning curves, as a user runs them; and the lanes' answers without Ray."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import optuna
import pandas
import pytest
import yaml
from mlflow import MlflowClient

from search import run
from search.landscape import Synthetic
from search.objective import Objective
from search.simulation import play
from tests.search import studies

TOP1 = [Objective("val/top1", True)]
SIMULATED = ("--concurrency", "1", "--epochs", "9", "--set", "grace_epochs=1", "finalists=0")
OTHER = """
import dataclasses

from spaces import vit_to_mlp

STUDY = dataclasses.replace(
    vit_to_mlp.STUDY, space=lambda trial: {"lr": trial.suggest_float("mine", 1e-4, 1e-3)}, first_guesses=[]
)
"""
CURVES = """
from search.landscape import Synthetic

def curves(config, params, epochs, seed):
    if len(config["stages"]) == 4:
        raise ValueError("four are too many")
    curve = Synthetic()(config, params, epochs, seed)
    if len(config["stages"]) == 3:
        curve[1]["val/loss"] = float("nan")
    if len(config["stages"]) == 2:
        curve[-1]["val/top1"] = float("nan")
    return curve
"""


@pytest.fixture
def place(tmp_path):
    """A folder of its own whose study's processes can be told from others'."""
    os.environ["OFAKD_TEST"] = str(tmp_path)
    return tmp_path


def simulate(place, *more, name="s", source="synthetic"):
    ran = studies.run("--space", studies.MAIN_SPACE, "--name", name, *SIMULATED, f"simulate={source}", *more, cwd=place)
    assert ran.code == 0, ran.err + ran.out
    return ran.out


def records(place, name="s"):
    found = [json.loads(path.read_text()) for path in (place / "runs" / name / "trials").glob("*/record.json")]
    return {record["trial_id"]: record for record in found}


def optunas(place, name="s"):
    backend = optuna.storages.journal.JournalFileBackend(str(place / "runs" / name / "optuna.log"))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend)).trials


def runs(place, name="s"):
    client = MlflowClient(f"sqlite:///{place}/runs/mlflow.db")
    return client.search_runs([client.get_experiment_by_name(name).experiment_id])


def assert_whole(place, trials):
    """Every trial ended, once everywhere, and all four tell the same."""
    found = records(place)
    own = {key: record["state"] for key, record in found.items() if record["role"] == "trial"}
    assert len(own) == trials and "running" not in own.values()
    for record in found.values():
        assert [entry["epoch"] for entry in record["history"]] == list(range(1, len(record["history"]) + 1))
    table = pandas.read_csv(place / "runs" / "s" / "trials.csv", dtype={"trial_id": str}).set_index("trial_id")
    assert table.index.is_unique and {key: table.state[key] for key in own} == own
    words = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    told = {str(trial.number): words[trial.state.name] for trial in optunas(place)}
    assert {key: told[key] for key in own} == own
    assert {told[key] for key in told.keys() - own.keys()} <= {"failed"}  # asked for as the driver died
    every = runs(place)
    children = [run for run in every if run.data.tags["role"] != "study"]
    assert {run.data.tags["trial_id"]: run.data.tags["state"] for run in children} == {
        key: record["state"] for key, record in found.items()
    }
    assert len(children) == len(found) and len(every) == len(found) + 1
    assert "RUNNING" not in {run.info.status for run in every}


def test_a_study_is_whole_and_says_that_nothing_was_trained(place, monkeypatch, capfd):
    out = simulate(place, "finalists=1", "seeds=1", "tune_baselines=2", "--trials", "12")
    tuned = {key: one for key, one in records(place).items() if one["role"] == "baseline"}
    assert set(tuned) == {"scratch", "kd", "scratch-1", "scratch-2", "kd-1", "kd-2"}
    assert {(one["state"], len(one["history"])) for one in tuned.values()} == {("complete", 9)}, "epochs as trials have"
    report = (place / "runs" / "s" / "report.md").read_text()
    assert "SIMULATED (simulate=synthetic), nothing was trained: On the test split" in report
    assert "SIMULATED (simulate=synthetic)" in out
    assert out.rstrip().endswith(
        "nothing was trained, its figures say nothing of real models, and there are no weights."
    )
    assert "best_student.safetensors" not in out and "export" not in out
    assert_whole(place, 12)
    folder = place / "runs" / "s"
    assert {"trials.csv", "history.png", "importance.png", "best.yaml"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.rglob("*.safetensors"))
    assert yaml.safe_load((folder / "best.yaml").read_text())["simulated"] == "synthetic"
    assert {run.data.tags["simulated"] for run in runs(place)} == {"synthetic"}
    final = next(key for key, record in records(place).items() if record["role"] == "finalist")
    tested = np.load(folder / "trials" / final / "test.npz")
    assert 100 * np.mean(tested["target"] == tested["predicted"]) == records(place)[final]["history"][-1]["test/top1"]
    assert not (place / "runs" / "teachers").exists()
    assert studies.left_behind(place) == []

    # Neither a warm start nor a resume where nothing is shared.
    (place / "other.py").write_text(OTHER)
    monkeypatch.chdir(place)
    for arguments, said in (
        (["--warm-start", "s", "--set", "simulate=synthetic"], "--warm-start: study 's' shares no parameter"),
        (["--resume", "--name", "s"], "search: none of the parameters of the 12 earlier trials"),
    ):
        capfd.readouterr()
        assert run.main(["--space", "other.py", *arguments]) == 2
        told = capfd.readouterr().err
        assert told.startswith(f"error: {said}") and told.count("\n") == 1, told

    # What it recorded serves another one, and what there is not is refused.
    again = simulate(place, "--trials", "3", name="t", source="s")
    assert "simulate=s" in again and "study s is replayed" in again
    curves = [record["history"] for record in records(place).values()]
    taken = [record["history"] for record in records(place, "t").values() if record["state"] == "complete"]
    assert taken and all(history in curves for history in taken)
    for script, arguments, said in (
        ("train", (), "'s' was simulated, so there is nothing worth training"),
        ("export", ("--to", "json", "--out", "out"), "'s' has no weights; a simulated study trains none"),
    ):
        command = [sys.executable, str(studies.ROOT / "search" / f"{script}.py"), "--study", "s", *arguments]
        ran = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=studies.LIMIT_S)
        assert ran.returncode == 2 and said in ran.stderr


@pytest.mark.long
def test_one_slot_and_a_seed_give_the_same_study_twice(place):
    found = []
    for name in ("s", "t"):
        simulate(place, "baselines=[]", "--trials", "15", "--seed", "3", name=name)
        found.append({key: (one["state"], one["params"], one["history"]) for key, one in records(place, name).items()})
    assert found[0] == found[1] and len(found[0]) == 15


@pytest.mark.long
def test_failing_and_nan_curves_end_failed_everywhere(place):
    (place / "mine.py").write_text(CURVES)
    simulate(place, "sampler=random", "scheduler=none", "baselines=[]", "--trials", "24", source="mine:curves")
    assert_whole(place, 24)
    reasons = {len(record["config"]["stages"]): record["reason"] for record in records(place).values()}
    assert reasons[4] == "ValueError: four are too many"
    assert reasons[3] == "the holdout loss is nan in epoch 2"
    assert reasons[2] == "val/top1 was not finite"
    states = {len(record["config"]["stages"]): record["state"] for record in records(place).values()}
    assert {states[2], states[3], states[4]} == {"failed"}


@pytest.mark.long
def test_a_study_killed_at_random_moments_loses_and_doubles_nothing(place):
    arguments = ("--space", studies.MAIN_SPACE, "--name", "s", *SIMULATED, "simulate=synthetic", "--trials", "40")
    moments = random.Random(0).sample(range(3, 36), 2)
    for session, moment in enumerate(sorted(moments)):
        process = studies.start(*arguments, *(["--resume"] if session else []), cwd=place)
        studies.wait_for(lambda: len(records_now(place)) >= moment, f"record {moment}")  # noqa: B023
        process.kill()
        process.communicate(timeout=studies.LIMIT_S)
    before = records(place)
    ran = studies.run(*arguments, "--resume", cwd=place)
    assert ran.code == 0, ran.err + ran.out
    assert_whole(place, 40)
    for trial_id, record in before.items():
        assert records(place)[trial_id]["history"][: len(record["history"])] == record["history"]


def records_now(place):
    """The records' files, while others write them."""
    return list((place / "runs" / "s" / "trials").glob("*/record.json"))


@pytest.mark.parametrize("source", ["nowhere", "no.module:f", "math:pi"])
def test_a_source_that_is_none_is_bad_input(place, source):
    ran = studies.run("--space", studies.MAIN_SPACE, "--set", f"simulate={source}", cwd=place)
    assert ran.code == 2 and ran.err.count("\n") == 1 and ran.err.startswith("error: simulate: ")
    assert not (place / "runs").exists()


def test_a_dry_run_counts_epochs_and_says_that_it_knows_no_times(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    sets = ["simulate=synthetic", "total_epochs=300", "finalists=0", "epochs=12", "scheduler=none", "time_budget=60"]
    assert run.main(["--space", studies.MAIN_SPACE, "--dry-run", "--trials", "50", "--set", *sets]) == 0
    said = capfd.readouterr().out
    assert "nothing is trained, no data are read" in said and "a step takes" not in said
    for line in (
        "in all     624 epochs",  # 50 trials and 2 baselines
        "not known  how long it takes, since nothing is trained, and when time_budget will act",
        "ended by   total_epochs, unless time_budget comes first",
        "warning    total_epochs (300 epochs) ends the search after about 23 of 50 trials (the whole study: 624 "
        "epochs)",
    ):
        assert line in said
    assert not (place / "runs").exists()


def job(**changes):
    weights = dict.fromkeys(("temperature", "gt_loss_weight", "kd_loss_weight"), 1.0)
    config = {"stages": [], "epochs": 3, "seed": 0, "distiller": "none", "eps": 1.0, **weights}
    return {"kind": "trial", "config": config, "params": {}, "known_epoch": 0, "test": False, **changes}


def test_a_verdict_ends_a_curve_and_known_epochs_are_not_repeated():
    seen = []

    def report(metrics):
        seen.append(metrics["epoch"])
        return metrics["epoch"] < 2

    assert play(job(), Synthetic(), TOP1, report) == {} and seen == [1, 2]
    seen.clear()
    assert play(job(known_epoch=2), Synthetic(), TOP1, report) == {} and seen == [3]


def test_numpy_s_numbers_become_plain_ones_those_of_the_test_split_too(tmp_path):
    seen, entry = [], {"val/top1": np.float64(1.5), "val/loss": np.float64(0.5)}
    final = job(test=True, folder=str(tmp_path), trial_id="7-seed1")
    play(final, lambda *_: [entry] * 3, TOP1, lambda metrics: seen.append(metrics) or True)
    assert seen[-1]["test/loss"] == 0.5
    assert {type(value) for metrics in seen for key, value in metrics.items() if key != "epoch"} == {float}


def test_a_bad_entry_fails_its_trial_alone():
    seen = []
    for entry, said in (
        ({"val/top1": None}, "simulate: the curve's 'val/top1' is None in epoch 3; give a number"),
        ({"val/top1": 1.0, "val/loss": "low"}, "simulate: the curve's 'val/loss' is 'low' in epoch 3; give a number"),
        ({}, "simulate: the curve has no 'val/top1' in epoch 3, which objectives name; add it at every epoch"),
    ):
        curve = [{"val/top1": 1.0}, {"val/top1": 2.0}, entry]
        assert play(job(), lambda *_, curve=curve: curve, TOP1, seen.append) == {"error": said, "bad_input": True}
    assert seen == []


def test_a_finalist_s_curve_needs_no_other_metric_than_the_objectives(tmp_path):
    seen, final = [], job(test=True, folder=str(tmp_path), trial_id="7-seed1")
    f1 = [Objective("val/macro_f1", True)]
    assert play(final, lambda *_: [{"val/macro_f1": 2.0}] * 3, f1, lambda metrics: seen.append(metrics) or True) == {}
    assert seen[-1]["test/macro_f1"] == 2.0 and not list(tmp_path.iterdir())
