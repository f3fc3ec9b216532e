"""What goes from MLflow with a study, and what stays: other people's."""

import json

import pytest
from mlflow import MlflowClient

from search import jobs
from search.resume import STARTED
from search.tracking.study_run import FILE, StudyRun


@pytest.fixture
def client(tmp_path):
    """MLflow's store beside the studies, with a run of each of two experiments."""
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def study(tmp_path):
    """A study that has ended, and what it told MLflow."""
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / STARTED).write_text(
        json.dumps({"flags": {"name": "s", "storage": str(tmp_path)}, "set": [], "stays": {}})
    )
    run = StudyRun(folder, "s")
    run.end("FINISHED")
    return run


def experiment(client, **tags):
    made = client.create_experiment("s", tags=tags)
    return made, client.create_run(made, tags={"role": "study"}).info.run_id


def version(client, run):
    client.create_model_version("s", "file:///nowhere", run_id=run)


def rm(tmp_path, capfd):
    assert jobs.main(["rm", "s", "--storage", str(tmp_path), "--yes"]) == 0
    assert not (tmp_path / "s").exists()
    return capfd.readouterr().out


def test_its_experiment_and_its_models(tmp_path, client, study, capfd):
    made, run = experiment(client, study_id=study.study_id)
    client.create_registered_model("s")
    version(client, run)
    out = rm(tmp_path, capfd)
    assert "deleted: its experiment" in out and "the registered model 's' with 1 version(s)" in out
    assert client.get_experiment(made).lifecycle_stage == "deleted"
    assert client.search_registered_models() == []


@pytest.mark.parametrize("tags", [{}, {"study_id": "another"}], ids=["nobody's", "another-study's"])
def test_an_experiment_of_its_name_that_is_not_its_own_stays_with_its_models(tmp_path, client, study, capfd, tags):
    made, run = experiment(client, **tags)
    client.create_registered_model("s")
    version(client, run)
    assert "left: MLflow" in rm(tmp_path, capfd)
    assert client.get_experiment(made).lifecycle_stage == "active"
    assert len(client.search_model_versions("name = 's'")) == 1


def test_of_a_study_that_mlflow_never_knew_nothing_goes(tmp_path, client, study, capfd):
    (tmp_path / "s" / FILE).unlink()
    made, _ = experiment(client, study_id=study.study_id)
    assert "deleted" not in rm(tmp_path, capfd)
    assert client.get_experiment(made).lifecycle_stage == "active"


def test_versions_that_others_registered_under_its_name_stay(tmp_path, client, study, capfd):
    _, run = experiment(client, study_id=study.study_id)
    other = client.create_run(client.create_experiment("other")).info.run_id
    client.create_registered_model("s")
    for one in (other, run):
        version(client, one)
    assert "1 version(s) of the registered model 's'; 1 of others are left" in rm(tmp_path, capfd)
    assert [one.run_id for one in client.search_model_versions("name = 's'")] == [other]
