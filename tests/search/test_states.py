"""A real study whose trials end in every way: Tune, Optuna, MLflow and trials.csv tell the same."""

import json

import optuna
import pandas
import pytest
from mlflow import MlflowClient

from tests.search import studies

pytestmark = pytest.mark.long  # a killed worker takes Ray half a minute to replace, three times

# Whoever builds this student within a lane dies of it, so that its trial is given up after some attempts.
KILLER = """
import os
import signal
from pathlib import Path

import timm

import trainables.models

def make(num_classes, img_size):
    if Path("/proc/self/cmdline").read_text().startswith("ray::"):
        os.kill(os.getpid(), signal.SIGKILL)
    return timm.create_model("mixer_nano", num_classes=num_classes, img_size=img_size)
"""
# The space file is code in the study's process: what Tune holds of its trials at the end is written down.
WATCH_TUNE = """
import json
from ray import tune

fit = tune.Tuner.fit

def watched(tuner):
    grid = fit(tuner)
    told = {trial.config["trial_id"]: trial.status for trial in grid._experiment_analysis.trials}
    with open("tune.json", "w") as file:
        json.dump(told, file)
    return grid

tune.Tuner.fit = watched
"""
BODY = """\
way = trial.suggest_categorical("way", ["good", "bad", "nan", "killed"])
return {
    "student": "killer:make" if way == "killed" else "mixer_nano",
    "stages": [4],
    "eps": trial.suggest_float("eps", 1.0, 2.0),
    "lr": {"good": 2e-3, "bad": 1e-9, "nan": 1e30, "killed": 2e-3}[way],
    "opt": "sgd" if way == "nan" else "adamw",
}"""
FIELDS = (
    "trials=7, epochs=6, grace_epochs=3, reduction_factor=2, labels_per_class=60, "
    "student='mixer_nano', student_kwargs={}"
)
WAYS = ["good", "good", "bad", "nan", "bad", "good", "killed"]


def finished_study(folder, monkeypatch):
    monkeypatch.setenv("OFAKD_TEST", str(folder))
    guesses = [{"way": way, "eps": 1.0 + index / 10} for index, way in enumerate(WAYS)]
    space = studies.write_space(folder, BODY, guesses, FIELDS)
    with open(space, "a") as file:
        file.write(WATCH_TUNE)
    (folder / "killer.py").write_text(KILLER)
    # One lane, so that the good come before the bad and ASHA has something to judge by.
    ran = studies.run("--space", space, "--name", "s", "--concurrency", "1", cwd=folder)
    assert ran.code == 0, ran.err + ran.out
    assert studies.left_behind(folder) == []


def test_states_are_the_same_everywhere_and_an_ended_trial_leaves_no_checkpoint(tmp_path, monkeypatch):
    finished_study(tmp_path, monkeypatch)
    study = tmp_path / "runs" / "s"
    table = pandas.read_csv(study / "trials.csv").set_index("trial_id")
    states = [table.state[str(number)] for number in range(len(WAYS))]
    assert states[0] == "complete"
    assert states[2] == states[4] == "pruned"
    assert states[3] == states[6] == "failed"
    assert "the training loss is" in table.reason["3"]
    assert table.reason["6"] == "given up after 3 attempts: its worker died"
    assert table.reason["2"] == "stopped early by the scheduler at epoch 3"

    tunes = json.loads((tmp_path / "tune.json").read_text())
    expected = {"complete": "TERMINATED", "pruned": "TERMINATED", "failed": "ERROR"}
    assert [tunes[str(number)] for number in range(len(WAYS))] == [expected[state] for state in states]

    backend = optuna.storages.journal.JournalFileBackend(str(study / "optuna.log"))
    told = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend)).trials
    optunas = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    assert [optunas[trial.state.name] for trial in told] == states
    assert sorted(told[2].intermediate_values) == [1, 2, 3]
    assert [trial.user_attrs.get("reason", "") for trial in told] == [
        table.reason.fillna("")[str(number)] for number in range(len(WAYS))
    ]

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    tags = {run.data.tags["trial_id"]: run.data.tags for run in runs if run.data.tags["role"] == "trial"}
    assert [tags[str(number)]["state"] for number in range(len(WAYS))] == states
    assert all(tags[str(number)].get("reason", "") == told[number].user_attrs.get("reason", "") for number in range(7))
    assert {run.info.status for run in runs if run.data.tags.get("state") == "pruned"} == {"KILLED"}
    assert "RUNNING" not in {run.info.status for run in runs}

    assert not list((study / "trials").glob("*/checkpoint.pt"))
