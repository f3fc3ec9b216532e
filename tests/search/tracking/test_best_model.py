"""The best student as an MLflow model: logged and registered once, given back by MLflow, whole after every kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from mlflow import MlflowClient

from search.exporters.graphs import trained_student
from search.ledger import TrialRecord
from search.results import write_best_yaml
from search.tracking.best_model import BEST, WEIGHTS, log_best_model
from search.tracking.store import connect
from tests.conftest import TINY
from tests.search.studies import ROOT
from trainables.checkpoint import save_weights
from trainables.config import TrialConfig
from trainables.loop import build_student

STUDY = "v1.0_vit-to.mlp"  # every character that a study's name may have
CLASSES = [f"class {number}" for number in range(10)]
STEPS = (  # each of a client's calls that changes the store
    "create_logged_model", "set_logged_model_tags", "log_model_artifacts", "finalize_logged_model",
    "log_outputs", "create_registered_model", "create_model_version", "set_registered_model_alias",
)  # fmt: skip
CONVOLUTION = {"student": "resnet10t", "student_kwargs": {}, "img_size": 32, "eps": 1.0}
OWN = """
import torch.nn as nn


class Student(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images):
        features = self.stem(images)
        {flow}
        return self.head(features.mean((2, 3)))
"""


IMPORTS = """import os, signal; from pathlib import Path; from mlflow import MlflowClient
from search.tracking.best_model import log_best_model; from search.tracking.store import connect
"""
CALL = "print(log_best_model(connect({uri!r}), {parent_id!r}, {study!r}, Path({folder!r}), {classes!r}))"


@pytest.fixture
def left(tmp_path):
    """Leaves a study's best student in its folder, as the end of a session does."""

    def leave(seed=0, trial="3", **fields) -> Path:
        folder = tmp_path / "runs" / STUDY
        config = TrialConfig(**(TINY | fields))
        torch.manual_seed(seed)
        save_weights(build_student(config, len(CLASSES)).model, folder / WEIGHTS)
        record = TrialRecord(trial, "trial", config.model_dump(), {"eps": 1.2})
        record.add({"epoch": 1, "train/loss": 1.0, "val/top1": 60.0 + seed})
        best = {
            "study": STUDY, "trial": trial, "val_top1": 60.0 + seed, "final": {}, "holdout_images": 64,
            "data_fingerprint": "0123456789abcdef", "teacher_top1": 80.0, "teacher_sha256": "0" * 64,
            "full_length": {"epochs": 36}, "searched": record.params, "config": record.config,
        }  # fmt: skip
        write_best_yaml(record, best, folder / BEST, study=STUDY)
        return folder

    return leave


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A database as MLflow makes it, which takes it seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def uri(tmp_path, empty_store):
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def client(uri):
    return connect(uri)


@pytest.fixture
def parent_id(client, tmp_path):
    return begin(client, (tmp_path / "artifacts").as_uri())


def begin(client, location=None) -> str:
    experiment = client.create_experiment(STUDY, artifact_location=location)
    return client.create_run(experiment, tags={"role": "study"}, run_name=STUDY).info.run_id


def elsewhere(code, uri, parent_id, folder):
    """Runs code that logs the folder's student, in a process of its own."""
    filled = code.format(uri=uri, parent_id=parent_id, study=STUDY, folder=str(folder), classes=CLASSES)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder.parents[1] / "own")])}
    return subprocess.run([sys.executable, "-c", IMPORTS + filled], capture_output=True, text=True, env=environment)


def logged_models(client, parent_id):
    return client.search_logged_models([client.get_run(parent_id).info.experiment_id])


def versions(client):
    return sorted(client.search_model_versions(f"name = '{STUDY}'"), key=lambda one: int(one.version))


def check_given_back(uri, folder, monkeypatch):
    """MLflow's own function gives the student of the folder back, which takes batches of any size."""
    config = TrialConfig(**yaml.safe_load((folder / BEST).read_text())["config"])
    student = trained_student(config, len(CLASSES), folder / WEIGHTS)
    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(uri)
    try:
        loaded = mlflow.pytorch.load_model(f"models:/{STUDY}@best")
        told = mlflow.models.get_model_info(f"models:/{STUDY}@best")
    finally:
        mlflow.set_tracking_uri(before)
    for count in (1, 2, 7):
        images = torch.randn(count, 3, config.img_size, config.img_size)
        with torch.no_grad():
            assert (loaded(images) - student(images)).abs().max() <= 1e-6
    return told


@pytest.mark.parametrize("fields", [{}, CONVOLUTION])
def test_the_student_is_logged_registered_and_given_back(left, client, parent_id, uri, monkeypatch, capfd, fields):
    folder = left(**fields)
    before = mlflow.get_tracking_uri()
    assert log_best_model(client, parent_id, STUDY, folder, CLASSES) is None
    assert capfd.readouterr() == ("", "")
    assert mlflow.active_run() is None and mlflow.get_tracking_uri() == before
    assert client.get_run(parent_id).info.status == "RUNNING"

    (model,) = logged_models(client, parent_id)
    assert (model.status, model.source_run_id) == ("READY", parent_id)
    assert [output.model_id for output in client.get_run(parent_id).outputs.model_outputs] == [model.model_id]
    config = TINY | fields
    assert model.params["student"] == config["student"] and model.tags["trial"] == "3"
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": STUDY, "version": 1}]
    (version,) = versions(client)
    assert version.run_id == parent_id and version.tags["val_top1"] == "60.0"
    assert "top-1 60.00" in version.description and f"models:/{model.model_id}" in version.description
    assert client.get_model_version_by_alias(STUDY, "best").version == version.version

    told = check_given_back(uri, folder, monkeypatch)
    side = config["img_size"]
    assert told.model_id == model.model_id
    assert (told.metadata["img_size"], told.metadata["classes"]) == (side, CLASSES)
    assert len(told.metadata["mean"]) == len(told.metadata["std"]) == 3
    assert told.signature.inputs.inputs[0].shape == (-1, 3, side, side)
    assert told.signature.outputs.inputs[0].shape == (-1, 10)


def test_another_call_adds_nothing_and_another_best_a_version(left, client, parent_id, uri, monkeypatch):
    folder = left()
    client.set_terminated(parent_id)
    for _ in range(2):
        assert log_best_model(client, parent_id, STUDY, folder, CLASSES) is None
    assert len(logged_models(client, parent_id)) == len(versions(client)) == 1
    assert len(client.get_run(parent_id).outputs.model_outputs) == 1

    left(seed=1, trial="8")
    for _ in range(2):
        assert log_best_model(client, parent_id, STUDY, folder, CLASSES) is None
    assert len(logged_models(client, parent_id)) == 2
    assert [version.tags["trial"] for version in versions(client)] == ["3", "8"]
    assert int(client.get_model_version_by_alias(STUDY, "best").version) == 2
    check_given_back(uri, folder, monkeypatch)

    left()
    assert log_best_model(client, parent_id, STUDY, folder, CLASSES) is None  # the first one leads again
    assert len(versions(client)) == 2 and int(client.get_model_version_by_alias(STUDY, "best").version) == 1
    assert client.get_run(parent_id).info.status == "FINISHED"


@pytest.mark.parametrize("step", STEPS)
def test_what_a_kill_after_any_step_left_is_completed(left, client, parent_id, monkeypatch, step):
    folder, change = left(), getattr(MlflowClient, step)

    def die(*arguments, **keywords):
        change(*arguments, **keywords)
        raise KeyboardInterrupt  # which nothing that expects errors sees, as little as a kill

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, step, die)
        with pytest.raises(KeyboardInterrupt):
            log_best_model(client, parent_id, STUDY, folder, CLASSES)
    assert log_best_model(client, parent_id, STUDY, folder, CLASSES) is None
    (model,) = logged_models(client, parent_id)
    assert model.status == "READY" and model.tags["mlflow.modelVersions"]
    assert len(client.get_run(parent_id).outputs.model_outputs) == len(versions(client)) == 1
    assert int(client.get_model_version_by_alias(STUDY, "best").version) == 1
    names = {Path(entry.path).name for entry in client.list_logged_model_artifacts(model.model_id)}
    assert {"MLmodel", "data", "requirements.txt", "input_example.json"} <= names


@pytest.fixture
def own_student(tmp_path, monkeypatch, left):
    """Leaves a student of the user's own, whose forward pass has the given line, as the best one."""
    place = tmp_path / "own"
    place.mkdir()
    monkeypatch.syspath_prepend(place)

    def leave(module, flow) -> Path:
        (place / f"{module}.py").write_text(OWN.format(flow=flow))
        return left(student=f"{module}:Student", student_kwargs={}, stages=[], eps=1.0, distiller="kd")

    return leave


def test_a_student_of_one_batch_size_is_told_and_not_logged(own_student, client, parent_id):
    folder = own_student(
        "my_rigid_student", "features = features.reshape(2, 4, 8, 8) if len(images) == 2 else features"
    )
    reason = log_best_model(client, parent_id, STUDY, folder, CLASSES)
    assert "my_rigid_student:Student cannot be exported by torch.export" in reason and "Guard failed" in reason
    assert logged_models(client, parent_id) == [] and client.search_registered_models() == []


def test_a_student_beyond_torch_export_is_told_in_one_line(own_student, client, parent_id, uri):
    folder = own_student("my_branching_student", "if features.sum() > 0: features = -features")
    ran = elsewhere(CALL, uri, parent_id, folder)
    assert ran.stderr == ""  # PyTorch says much
    (reason,) = ran.stdout.splitlines()
    assert "my_branching_student:Student cannot be exported by torch.export" in reason and "data-dependent" in reason
    assert logged_models(client, parent_id) == [] and client.search_registered_models() == []


def test_a_students_own_code_is_not_needed_to_load_it(own_student, client, parent_id, uri, tmp_path):
    folder = own_student("my_plain_student", "features = features.relu()")
    assert log_best_model(client, parent_id, STUDY, folder, CLASSES) is None
    code = (
        f"import sys, torch, mlflow\nmlflow.set_tracking_uri({uri!r})\n"
        f"print(tuple(mlflow.pytorch.load_model('models:/{STUDY}@best')(torch.zeros(5, 3, 16, 16)).shape))\n"
        "print([name for name in ('trainables', 'search', 'timm', 'my_plain_student') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-2:] == ["(5, 10)", "[]"], ran.stderr


def test_a_name_that_a_prompt_has_is_told(left, client, parent_id):
    client.register_prompt(STUDY, "a template")
    assert "not registered" in log_best_model(client, parent_id, STUDY, left(), CLASSES)
    assert logged_models(client, parent_id)[0].status == "READY"


def test_a_study_without_a_student_has_no_model(client, parent_id, tmp_path):
    assert log_best_model(client, parent_id, STUDY, tmp_path, CLASSES) is None
    assert not logged_models(client, parent_id)


@pytest.mark.long
def test_through_a_server_and_a_kill(left, server, tmp_path, monkeypatch):
    uri, start = server
    start()
    client, folder = connect(uri), left()
    parent_id = begin(client)
    code = (
        "write = MlflowClient.log_model_artifacts\n"
        "def die(*arguments):\n    write(*arguments)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "MlflowClient.log_model_artifacts = die\n" + CALL
    )
    killed = elsewhere(code, uri, parent_id, folder)
    assert killed.returncode == -signal.SIGKILL
    (begun,) = logged_models(client, parent_id)
    assert begun.status == "PENDING"
    for _ in range(2):
        assert log_best_model(client, parent_id, STUDY, folder, CLASSES) is None
    (model,) = logged_models(client, parent_id)
    assert (model.model_id, model.status) == (begun.model_id, "READY")
    (version,) = versions(client)
    (known,) = json.loads(model.tags["mlflow.modelVersions"])
    assert (known["name"], str(known["version"])) == (STUDY, version.version)
    check_given_back(uri, folder, monkeypatch)
    left(seed=1, trial="8")
    assert log_best_model(client, parent_id, STUDY, folder, CLASSES) is None
    assert int(client.get_model_version_by_alias(STUDY, "best").version) == len(versions(client)) == 2
    check_given_back(uri, folder, monkeypatch)
