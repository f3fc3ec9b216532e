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
    """MLflow's own deletion: of the experiment, which can be restored there, and of its models' versions, for good.

    What is another study's, or a person's, under the same name is left.
    """
    if run is None:  # it ended before MLflow knew of it
        return []
    check_tracking(uri)
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        experiment = client.get_experiment_by_name(study)
        if experiment is None or experiment.lifecycle_stage != "active":
            return []
        if experiment.tags.get("study_id") != run.study_id:
            return [f"left: MLflow at {shown(uri)} has another study's experiment of the name '{study}'"]
        done = _models(client, study, experiment.experiment_id)  # first: their runs are found no more afterwards
        # Under a name of its own: MLflow keeps a deleted experiment's name from new ones.
        client.rename_experiment(experiment.experiment_id, f"{study}-removed-{time.strftime('%Y%m%d-%H%M%S')}")
        client.delete_experiment(experiment.experiment_id)
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        return [f"deleted: its experiment in MLflow at {shown(uri)} (it comes back by: {restore})", *done]
    except MlflowException as error:
        raise refused(uri, error) from error


def _models(client, study: str, experiment: str) -> list[str]:
    """Deletes what an experiment's runs have registered under a study's name, and the name where nothing is left."""
    versions = client.search_model_versions(f"name = '{study}'")
    if not versions:
        return []
    runs = {run.info.run_id for run in client.search_runs([experiment], "tags.role = 'study'")}
    own = [version for version in versions if version.run_id in runs]
    if len(own) == len(versions):
        client.delete_registered_model(study)
        return [f"deleted: the registered model '{study}' with {len(own)} version(s)"]
    for version in own:
        client.delete_model_version(study, version.version)
    others = len(versions) - len(own)
    return [f"deleted: {len(own)} version(s) of the registered model '{study}'; {others} of others are left"]


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
