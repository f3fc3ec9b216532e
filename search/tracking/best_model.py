"""The study's best student as an MLflow model, registered under the study's name.

It is logged as torch.export's program, which is loaded without our code and unpickles nothing. Every step looks first
for what an earlier call has left: a call may be killed anywhere, and the next one completes it. All of it goes through
the client that is given: MLflow's fluent functions would change the process's active run and tracking URI.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from search.terminal import noise_to
from search.tracking.facts import as_text, flat_params
from search.tracking.store import first_line
from trainables.config import TrialConfig
from trainables.errors import StudyError, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import Model
    from torch.export import ExportedProgram

BEST, WEIGHTS = "best.yaml", "best_student.safetensors"
NAME, ALIAS = "best_student", "best"
SHA256 = "weights_sha256"  # the tag that says which student a model is
NOTE, VERSIONS = "mlflow.note.content", "mlflow.modelVersions"  # MLflow's own tags, for its UI: text, and registered as
EXAMPLE_IMAGES = 2  # with one, torch.export would take it for the only batch size
PACKAGES = ("mlflow", "torch", "numpy")  # that loading needs; MLflow would look for them in a process of its own
LIGHTNING = "mlflow.pytorch._lightning_autolog"
OPERATORS = {"aten", "prim", "prims", "higher_order"}  # the families of those that PyTorch itself has
DESCRIPTION = """`{student}`, trial {trial} of the study `{study}`, {taught}: top-1 {val_top1:.2f} on the holdout, whose
{holdout_images} images chose it.

```python
import mlflow

model = mlflow.pytorch.load_model("{uri}")  # needs mlflow and torch, not the code that trained it
logits = model(images)  # float32, [N, 3, {img_size}, {img_size}] to [N, {classes}]
```

Images are RGB, scaled to 0..1, then normalised by mean {mean} and deviation {std}. The classes, in the order of the
logits: `mlflow.models.get_model_info("{uri}").metadata["classes"]`.
"""
REGISTERED = """The best students of the study `{study}`, a version for each that was its best when a session ended; the
alias `best` is at the present one: `mlflow.pytorch.load_model("models:/{study}@best")`.
"""


def log_best_model(client: "MlflowClient", parent_id: str, study: str, folder: Path, classes: list[str]) -> str | None:
    """Logs the best student as a model of the parent run and registers it, with the alias `best`; what is there stays.

    The same weights are logged and registered once, however often this is called. The alias is always at the version
    of the weights that the folder has.

    Args:
        client: of the store that has the run.
        parent_id: the study's run, which may have ended; its status stays as it is.
        study: its name, which is the registered model's.
        folder: the study's; without a best student in it nothing is done.
        classes: the data's class names, in the order of the logits.

    Returns:
        Why there is no model of the best student, as a sentence; None where there is one, or no best student.

    Raises:
        MlflowException: the store fails; another call goes on from there.
    """
    if not all((folder / name).exists() for name in (BEST, WEIGHTS)):
        return None
    best = yaml.safe_load((folder / BEST).read_text())
    with (folder / WEIGHTS).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    run = client.get_run(parent_id)
    logged = _known(client, run, sha256)
    if logged is None or logged.status != "READY":
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "model")
            try:
                model = _save(best, folder / WEIGHTS, classes, path)
            except Exception as error:  # a model's code may be beyond torch.export in any way it likes
                return f"the best student is no MLflow model, it has its weights alone: {one_line(error)}"
            logged = _log(client, run, logged, sha256, best, model, path)
    if logged.model_id not in {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}:
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(parent_id, [LoggedModelOutput(logged.model_id, step=0)])
    return _register(client, study, logged)


def _known(client: "MlflowClient", run: "Run", sha256: str) -> "LoggedModel | None":
    """What an earlier call logged of these weights, whole or not."""
    query = f"source_run_id = '{run.info.run_id}' AND tags.{SHA256} = '{sha256}'"
    found = client.search_logged_models([run.info.experiment_id], query)
    return min(found, key=lambda model: model.status != "READY", default=None)


def _save(best: dict[str, Any], weights: Path, classes: list[str], path: Path) -> "Model":
    """Writes the model's folder, which is compared with PyTorch, before anything of it is logged.

    Raises:
        StudyError: torch.export cannot have this student, or gives other logits.
        InputError: it can no longer be built.
    """
    with _without_lightning():
        import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from search.exporters.graphs import compared, trained_student
    from trainables.build import normalization

    config = TrialConfig(**best["config"])
    student = trained_student(config, len(classes), weights)
    mean, std = (list(values) for values in normalization(student))
    model = Model(metadata=_about(best) | {"img_size": config.img_size, "mean": mean, "std": std, "classes": classes})
    size = (3, config.img_size, config.img_size)

    def tensors(name: str, *shape: int) -> Schema:
        return Schema([TensorSpec(np.dtype("float32"), (-1, *shape), name)])

    def written():
        mlflow.pytorch.save_model(
            student,
            str(path),
            mlflow_model=model,
            signature=ModelSignature(tensors("images", *size), tensors("logits", len(classes))),
            input_example=np.zeros((EXAMPLE_IMAGES, *size), np.float32),  # of the mean colour
            serialization_format="pt2",
            pip_requirements=[f"{package}=={_public_version(package)}" for package in PACKAGES],
        )
        program = torch.export.load(path / "data" / "model.pt2")
        if foreign := _foreign_operators(program):
            raise StudyError(f"PyTorch alone lacks its operators {', '.join(foreign)}")
        return program.module()

    with noise_to(Path(os.devnull)):  # PyTorch prints the graph that it fails at
        compared("torch.export", written, student, config)
    return model


@contextlib.contextmanager
def _without_lightning():
    """Within this MLflow does not import Lightning where that is installed: seconds, for logging that we do not use."""
    sys.modules.setdefault(LIGHTNING, None)  # an ImportError, which MLflow takes for its absence
    try:
        yield
    finally:
        if sys.modules[LIGHTNING] is None:
            del sys.modules[LIGHTNING]


def _log(
    client: "MlflowClient", run: "Run", begun: "LoggedModel | None", sha256: str, best: dict, model: "Model", path: Path
) -> "LoggedModel":
    """Logs a model's folder, into what an earlier call has begun where there is such."""
    logged = begun or client.create_logged_model(
        run.info.experiment_id,
        NAME,
        source_run_id=run.info.run_id,
        tags=_about(best) | {SHA256: sha256},
        params={name: as_text(value) for name, value in flat_params(best["config"]).items()},
    )
    client.set_logged_model_tags(logged.model_id, {NOTE: _description(best, model, f"models:/{logged.model_id}")})
    model.artifact_path, model.run_id = logged.artifact_location, run.info.run_id
    model.model_id = model.model_uuid = logged.model_id
    model.save(str(path / "MLmodel"))
    client.log_model_artifacts(logged.model_id, str(path))
    return client.finalize_logged_model(logged.model_id, "READY")


def _register(client: "MlflowClient", study: str, logged: "LoggedModel") -> str | None:
    """Gives a logged model its version and the alias; why it has none, where the name is taken by something else."""
    from mlflow.exceptions import MlflowException

    if not any(one.name == study for one in client.search_registered_models(f"name = '{study}'")):
        try:
            client.create_registered_model(study, description=REGISTERED.format(study=study))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return f"the best student is logged and not registered: {first_line(error)}"  # a prompt has the name
    version = _version(client, study, logged)
    known = json.loads(client.get_logged_model(logged.model_id).tags.get(VERSIONS, "[]"))
    if not any(one["name"] == study and str(one["version"]) == str(version) for one in known):  # a server has done it
        told = json.dumps([*known, {"name": study, "version": version}])
        client.set_logged_model_tags(logged.model_id, {VERSIONS: told})
    if str(client.get_registered_model(study).aliases.get(ALIAS)) != str(version):
        client.set_registered_model_alias(study, ALIAS, str(version))
    return None


def _version(client: "MlflowClient", study: str, logged: "LoggedModel") -> int | str:
    """The version that a logged model has, or is given now."""
    sha256 = logged.tags[SHA256]
    for one in client.search_model_versions(f"name = '{study}' AND tags.{SHA256} = '{sha256}'"):
        if one.source == logged.artifact_location:
            return one.version
    made = client.create_model_version(
        study,
        # Of `models:/ID` a database's client would look the model up in whatever store the process has as its own.
        logged.artifact_location,
        run_id=logged.source_run_id,
        tags={name: value for name, value in logged.tags.items() if not name.startswith("mlflow.")},
        description=logged.tags[NOTE],
        await_creation_for=0,
        model_id=logged.model_id,
    )
    return made.version


def _about(best: dict[str, Any]) -> dict[str, Any]:
    config = {name: best["config"][name] for name in ("student", "teacher", "distiller")}
    return {"study": best["study"], "trial": best["trial"], **config, "val_top1": best["val_top1"]}


def _description(best: dict[str, Any], model: "Model", uri: str) -> str:
    facts = _about(best) | model.metadata | {"classes": len(model.metadata["classes"]), "uri": uri}
    taught = f"taught by `{facts['teacher']}` with the distiller `{facts['distiller']}`"
    if facts["distiller"] == "none":
        taught = "trained on labels alone"
    return DESCRIPTION.format(**facts, taught=taught, holdout_images=best["holdout_images"])


def _public_version(package: str) -> str:
    """Without the build's mark, as in `2.10.0+cpu`, which package indices do not have."""
    return metadata.version(package).partition("+")[0]


def _foreign_operators(program: "ExportedProgram") -> list[str]:
    """Operators whose own package would have to be imported before the program could be loaded."""
    nodes = (node for graph in program.graph_module.modules() if hasattr(graph, "graph") for node in graph.graph.nodes)
    targets = [node.target for node in nodes if node.op == "call_function" and hasattr(node.target, "namespace")]
    return sorted({str(target) for target in targets if target.namespace not in OPERATORS})
