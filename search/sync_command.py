"""The command behind `search/sync.py`: MLflow is given what it lacks of a study."""

import os
from pathlib import Path

from search.paths import storage_folder
from search.resume import known_studies, sole_session, store_of
from search.terminal import noise_to, person_console
from search.tracking.mirror import Mirror
from search.tracking.store import check_tracking, refused, shown
from search.tracking.study_run import RUNNING, StudyRun
from trainables.errors import InputError


def run_sync(arguments) -> int:
    """Writes everything that is missing; returns the exit code.

    Raises:
        InputError: there is no such study, it is being run, or the store cannot be reached or refuses.
    """
    storage = storage_folder(arguments.storage)
    folder = storage / arguments.study
    if not folder.is_dir():
        raise InputError(f"--study: there is no study '{arguments.study}' in {storage}{known_studies(storage)}")
    uri = store_of(folder, arguments.tracking_uri)
    console = person_console()
    with sole_session(folder):
        run = StudyRun.read(folder)
        if run is None:
            raise InputError(f"--study: '{folder.name}' has nothing for MLflow yet; go on with it: --resume")
        check_tracking(uri)
        if run.status == RUNNING:  # its session was killed, or it would hold the lock
            run.end("KILLED")
        with noise_to(Path(os.devnull)), console.status(f"writing to {shown(uri)}"):
            written, trials = _write_all(Mirror(uri, folder), uri)
    console.print(f"MLflow at {shown(uri)} has study {folder.name} whole: {trials} runs, {written} of them written now")
    return 0


def _write_all(mirror: Mirror, uri: str) -> tuple[int, int]:
    """How many trials lacked something, and how many there are."""
    try:
        mirror.open()
        places = mirror.places()
        written = sum(mirror.trial(place, live=False) for place in places)
        mirror.study()
        mirror.end()
    except InputError:
        raise
    except Exception as error:  # each store and driver has its own
        raise InputError(refused(uri, error)) from error
    return written, len(places)
