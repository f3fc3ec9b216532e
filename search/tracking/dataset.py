"""The study's data as inputs of its runs: MLflow shows them in a column of their own, with where they lie."""

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a tracked process loads the plan's modules only where it needs them
    from mlflow.entities import DatasetInput

    from search.preflight import Plan

CONTEXT = "mlflow.data.context"  # MLflow's own tag, by which its UI says what an input was for


def data_facts(plan: "Plan") -> dict[str, Any]:
    """What MLflow is told of a study's data, as plain data; empty where the study is simulated and reads none."""
    if plan.curves:
        return {}
    settings = plan.settings
    name, source_type, source = _origin(settings.data, settings.data_dir)
    return {
        "name": name,
        "digest": plan.data_fingerprint,
        "source_type": source_type,
        "source": source,
        "img_size": settings.img_size,
        "train_images": plan.train_images,
        "holdout_images": plan.holdout_images,
        "test_images": plan.test_images,
        "labels_per_class": settings.labels_per_class,
        "classes": plan.classes,
    }


def dataset_inputs(facts: dict[str, Any]) -> "list[DatasetInput]":
    """The inputs for `MlflowClient.log_inputs`: what was trained on, and what ranked the trials.

    MLflow knows a data set by its name and digest, and a run's input by its data set: written again, nothing is added.

    Args:
        facts: as `data_facts` gives them; of empty ones nothing comes.
    """
    if not facts:
        return []
    from mlflow.entities import Dataset, DatasetInput, InputTag

    side, classes = facts["img_size"], len(facts["classes"])
    parts = {f"{part}_images": facts[f"{part}_images"] for part in ("train", "holdout", "test")}
    budget = facts["labels_per_class"] or "all"
    schema = {
        "features": json.dumps([_tensor("images", "float32", [-1, 3, side, side])]),
        "targets": json.dumps([_tensor("labels", "int64", [-1])]),
    }

    def one(name: str, context: str, profile: dict[str, Any]) -> DatasetInput:
        dataset = Dataset(
            name,
            facts["digest"],
            facts["source_type"],
            json.dumps(facts["source"]),
            json.dumps({"mlflow_tensorspec": schema}),
            json.dumps(profile),
        )
        return DatasetInput(dataset, [InputTag(CONTEXT, context)])

    return [
        one(facts["name"], "training", {**parts, "classes": classes, "labels_per_class": budget}),
        one(f"{facts['name']} holdout", "evaluation", {"images": facts["holdout_images"], "classes": classes}),
    ]


def _origin(data: str, data_dir: str | None) -> tuple[str, str, dict[str, Any]]:
    """The data's name, and their source as MLflow's classes of sources read it (`mlflow.data.get_source`)."""
    from trainables.sources import known_names

    if data.lower() == "digits":
        package = {"package": "scikit-learn", "version": metadata.version("scikit-learn")}
        return data, "code", {"tags": {**package, "function": "sklearn.datasets.load_digits"}}
    if data.lower() in known_names():
        return data, "local", _folder(data_dir or "")
    if data.lower().startswith("hfds/"):
        unused = dict.fromkeys(("config_name", "data_dir", "data_files", "revision"))
        return data, "hugging_face", {"path": data[len("hfds/") :], "split": "train", **unused}
    return Path(data).expanduser().resolve().name, "local", _folder(data)


def _folder(path: str) -> dict[str, str]:
    return {"uri": str(Path(path).expanduser().resolve())}


def _tensor(name: str, dtype: str, shape: list[int]) -> dict[str, Any]:
    """One tensor of a schema, as `mlflow.types.Schema.to_json` writes it, whose import takes seconds."""
    return {"name": name, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}
