"""The study's data as MLflow's inputs: what the UI shows, and that MLflow's own classes read it."""

import json

import mlflow.data
import pytest
from mlflow.data.schema import TensorDatasetSchema
from mlflow.utils.validation import MAX_DATASET_DIGEST_SIZE

from search.preflight import preflight
from search.settings import resolve
from search.study import Scale, Study
from search.tracking.dataset import data_facts, dataset_inputs
from search.tracking.store import connect
from tests.conftest import TINY

FIELDS = {key: value for key, value in TINY.items() if key not in ("stages", "eps", "lr", "batch_size", "hflip")}
PROFILE = {"train_images": 80, "holdout_images": 287, "test_images": 359, "classes": 10, "labels_per_class": 8}


def planned(**flags):
    study = Study(space=lambda trial: {}, scales={"embedded": Scale(**FIELDS)}, first_guesses=[], baselines=["kd"])
    return preflight(study, resolve(study, {"name": "n", "space": "s.py", **flags}, []))[0]


@pytest.fixture(scope="module")
def plan():
    return planned()


def elsewhere(plan, **data):
    """The facts of the same plan with other data."""
    plan = type(plan)(**{**vars(plan), "settings": plan.settings.model_copy(update=data)})
    return json.loads(json.dumps(data_facts(plan)))


def check_written(client, run_id, facts):
    """Written twice, each input is there once, with all that its drawer shows."""
    for _ in range(2):
        client.log_inputs(run_id, dataset_inputs(facts))
    found = {one.tags[0].value: one for one in client.get_run(run_id).inputs.dataset_inputs}
    assert len(client.get_run(run_id).inputs.dataset_inputs) == 2
    training = found["training"].dataset
    assert {one.dataset.name for one in found.values()} == {"digits", "digits holdout"}
    assert json.loads(training.profile) == PROFILE
    assert json.loads(found["evaluation"].dataset.profile) == {"images": 287, "classes": 10}
    schema = TensorDatasetSchema.from_dict(json.loads(training.schema))
    assert schema.features.inputs[0].shape == (-1, 3, 16, 16) and schema.targets.inputs[0].name == "labels"
    assert schema.to_dict() == json.loads(training.schema)
    assert {one.tags[0].key for one in found.values()} == {"mlflow.data.context"}
    assert mlflow.data.get_source(found["training"]).to_dict()["tags"]["function"] == "sklearn.datasets.load_digits"


def test_the_data_are_an_input_of_the_run(plan, tmp_path):
    facts = json.loads(json.dumps(data_facts(plan)))
    assert facts["digest"] == plan.data_fingerprint and len(facts["digest"]) <= MAX_DATASET_DIGEST_SIZE
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    check_written(client, client.create_run(client.create_experiment("a study")).info.run_id, facts)


@pytest.mark.long
def test_the_data_are_an_input_through_a_server(plan, server):
    uri, start = server
    start()
    client = connect(uri)
    check_written(client, client.create_run(client.create_experiment("a study")).info.run_id, data_facts(plan))


@pytest.mark.parametrize(
    ("data", "data_dir", "name", "source_type", "place"),
    [
        ("torch/CIFAR100", "sets", "torch/CIFAR100", "local", ("uri", "sets")),
        ("hfds/uoft-cs/cifar100", None, "hfds/uoft-cs/cifar100", "hugging_face", ("path", "uoft-cs/cifar100")),
        ("pictures", None, "pictures", "local", ("uri", "pictures")),
    ],
)
def test_other_data_are_named_and_placed(plan, tmp_path, monkeypatch, data, data_dir, name, source_type, place):
    monkeypatch.chdir(tmp_path)
    facts = elsewhere(plan, data=data, data_dir=data_dir)
    training = dataset_inputs(facts)[0].dataset
    assert (training.name, training.source_type) == (name, source_type)
    key, value = place
    found = mlflow.data.get_source(training).to_dict()[key]
    assert found == (str(tmp_path / value) if source_type == "local" else value)


def test_a_simulated_study_has_no_data():
    facts = data_facts(planned(simulate="synthetic"))
    assert facts == {} and dataset_inputs(facts) == []
