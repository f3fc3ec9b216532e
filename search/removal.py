"""A study that is removed: its runs and models from MLflow, its folder from the storage; what studies share stays."""

import os
import shutil
import sys
import time
from pathlib import Path

from search.resume import sole_session, store_of
from search.terminal import noise_to
from search.tracking.credentials import shown
from search.tracking.store import check_tracking, connect, refused, store_exists
from search.tracking.study_run import StudyRun
from trainables.errors import InputError


def remove(folder: Path, tracking_uri: str | None) -> list[str]:
    """Removes the study of a folder; returns what was done, a line each.

    MLflow comes first, so that a study whose server is away is whole as before.

    Args:
        tracking_uri: MLflow's store; None is the study's own.

    Raises:
        InputError: the study is being run, or its store cannot be reached or refuses.
    """
    with sole_session(folder):
        uri = store_of(folder, tracking_uri)
        with noise_to(Path(os.devnull)):
            done = _from_mlflow(uri, folder.name, StudyRun.read(folder)) if store_exists(uri) else []
        shutil.rmtree(folder)
    return [*done, f"removed: {folder}"]


def _from_mlflow(uri: str, study: str, run: StudyRun | None) -> list[str]:
    """MLflow's own deletion: of the experiment, which can be restored there, and of the registered model, for good."""
    check_tracking(uri)
    done, client = [], connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        experiment = client.get_experiment_by_name(study)
        if experiment and run and experiment.tags.get("study_id", run.study_id) != run.study_id:
            return [f"left: MLflow at {shown(uri)} has another study's experiment of the name '{study}'"]
        if experiment and experiment.lifecycle_stage == "active":
            # Under a name of its own: MLflow keeps a deleted experiment's name from new ones.
            client.rename_experiment(experiment.experiment_id, f"{study}-removed-{time.strftime('%Y%m%d-%H%M%S')}")
            client.delete_experiment(experiment.experiment_id)
            restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
            done.append(f"deleted: its experiment in MLflow at {shown(uri)} (it comes back by: {restore})")
        if client.search_registered_models(f"name = '{study}'"):
            versions = len(client.search_model_versions(f"name = '{study}'"))
            client.delete_registered_model(study)
            done.append(f"deleted: the registered model '{study}' with {versions} version(s)")
    except MlflowException as error:
        raise refused(uri, error) from error
    return done


def confirm(question: str, yes: bool) -> bool:
    """Asks a person, unless the answer was given.

    Raises:
        InputError: there is no person to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InputError("--yes: nobody is there to be asked; give --yes where a script removes a study")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
