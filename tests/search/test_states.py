"""A real study whose trials end in every way: Tune, Optuna, MLflow and trials.csv tell the same."""

import os

import optuna
import pandas
import pytest
from mlflow import MlflowClient

from tests.search import studies

BODY = """\
way = trial.suggest_categorical("way", ["good", "bad", "nan"])
return {
    "stages": [4],
    "eps": trial.suggest_float("eps", 1.0, 2.0),
    "lr": {"good": 2e-3, "bad": 1e-9, "nan": 1e30}[way],
    "opt": "sgd" if way == "nan" else "adamw",
}"""
FIELDS = (
    "trials=6, epochs=6, grace_epochs=3, reduction_factor=2, labels_per_class=60, "
    "student='mixer_nano', student_kwargs={}"
)
WAYS = ["good", "good", "bad", "nan", "bad", "good"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    os.environ["OFAKD_TEST"] = str(folder)
    guesses = [{"way": way, "eps": 1.0 + index / 10} for index, way in enumerate(WAYS)]
    space = studies.write_space(folder, BODY, guesses, FIELDS)
    # One lane, so that the good come before the bad and ASHA has something to judge by.
    ran = studies.run("--space", space, "--name", "s", "--concurrency", "1", cwd=folder)
    assert ran.code == 0, ran.err + ran.out
    assert studies.left_behind(folder) == []
    return folder


def test_states_are_the_same_everywhere(study):
    table = pandas.read_csv(study / "runs" / "s" / "trials.csv").set_index("trial_id")
    states = [table.state[str(number)] for number in range(6)]
    assert states[0] == "complete"
    assert states[2] == states[4] == "pruned"
    assert states[3] == "failed"
    assert "the training loss is" in table.reason["3"]
    assert table.reason["2"] == "stopped early by the scheduler at epoch 3"

    backend = optuna.storages.journal.JournalFileBackend(str(study / "runs" / "s" / "optuna.log"))
    told = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend)).trials
    optunas = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    assert [optunas[trial.state.name] for trial in told] == states
    assert sorted(told[2].intermediate_values) == [1, 2, 3]

    client = MlflowClient(f"sqlite:///{study}/runs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    tags = {run.data.tags["trial_id"]: run.data.tags["state"] for run in runs if run.data.tags["role"] == "trial"}
    assert [tags[str(number)] for number in range(6)] == states
    assert {run.info.status for run in runs if run.data.tags.get("state") == "pruned"} == {"KILLED"}
    assert "RUNNING" not in {run.info.status for run in runs}


def test_an_ended_trial_leaves_no_checkpoint(study):
    assert not list((study / "runs" / "s" / "trials").glob("*/checkpoint.pt"))
