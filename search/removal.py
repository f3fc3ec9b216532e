"""A study that is removed: its runs and models from MLflow, its folder from the storage; what studies share stays."""

import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from search.resume import sole_session, store_of
from search.storage import SESSION, STARTED, Storage
from search.terminal import noise_to
from search.tracking.credentials import shown
from search.tracking.store import check_tracking, connect, refused, store_exists
from search.tracking.study_run import StudyRun
from trainables.errors import InputError
from trainables.remote import Remote

AT_ONCE = 500  # files that a store is asked to remove: it is to answer within seconds


def remove(folder: Path, tracking_uri: str | None, storage: Storage) -> list[str]:
    """Removes a study; returns what was done, a line each.

    MLflow comes first, so that a study whose server is away is whole as before. What names it as a study goes last, so
    that a removal that was cut off can be done again.

    Args:
        folder: the study's, or its working copy, which was brought.
        tracking_uri: MLflow's store; None is the study's own.
        storage: where it lies.

    Raises:
        InputError: the study is being run, or MLflow or the storage cannot be reached or refuses.
    """
    remote = storage.remote and storage.remote.at(folder.name)
    with sole_session(folder, storage) as mirroring:
        uri = store_of(folder, tracking_uri)
        with noise_to(Path(os.devnull)):
            there = store_exists(uri)
            done = _from_mlflow(uri, folder.name, StudyRun.read(folder)) if there else []
        if remote and not there:
            done.append(f"left: what MLflow knows of it on the machine that ran it; here is no {shown(uri)}")
        mirroring.forget()
        if remote:
            _empty(storage, remote)
        shutil.rmtree(folder)
    if remote and storage.reach(remote.files):  # the session's end removes the rest, and says nothing where it cannot
        storage.reach(remote.remove_all)
        _check_gone(remote, storage.reach(remote.files))
    return [*done, f"removed: {storage.shown(folder)}"]


def _empty(storage: Storage, remote: Remote) -> None:
    """Removes what a store has of a study, but for what names it as one and the session's lease.

    Raises:
        InputError: the store does not do it.
    """

    def left() -> list[str]:
        return sorted(storage.reach(remote.files).keys() - {STARTED, SESSION})

    names = left()
    for start in range(0, len(names), AT_ONCE):
        storage.reach(lambda start=start: remote.remove_some(names[start : start + AT_ONCE]))
    _check_gone(remote, left())


def _check_gone(remote: Remote, left: Iterable[str]) -> None:
    """Raises: InputError: something is left."""
    if left := list(left):
        raise InputError(
            f"storage: {remote.url} still has {len(left)} file(s), as {left[0]}, which it does not remove; give these "
            "credentials the right to delete, and rm the study again"
        )


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
