"""The command behind `search/sync.py`: MLflow is given what it lacks of a study."""

import os
import sys
from pathlib import Path

from search.paths import import_from_current_folder
from search.resume import known_studies, sole_session, store_of
from search.storage import Storage
from search.terminal import noise_to, person_console
from search.tracking.credentials import shown
from search.tracking.mirror import Mirror
from search.tracking.store import check_tracking
from search.tracking.study_run import RUNNING, StudyRun
from search.tracking.writer import Writer
from trainables.errors import InputError


def run_sync(arguments) -> int:
    """Writes everything that is missing; returns the exit code, 1 where the store did not take all.

    Raises:
        InputError: there is no such study, it is being run, or the store cannot be reached or refuses.
    """
    import_from_current_folder()  # the best student may be a model of the user's own
    storage = Storage(arguments.storage)
    folder = storage.bring(arguments.study)
    if not folder.is_dir():
        raise InputError(f"--study: there is no study '{arguments.study}' in {storage}{known_studies(storage.root)}")
    uri = store_of(folder, arguments.tracking_uri)
    console = person_console()
    with sole_session(folder, storage):
        run = StudyRun.read(folder)
        if run is None:
            raise InputError(f"--study: '{folder.name}' has nothing for MLflow yet; go on with it: --resume")
        check_tracking(uri)
        if run.status == RUNNING:  # its session was killed, or it would hold the lock
            run.end("KILLED")
        notes: list[str] = []
        mirror = Mirror(uri, folder)
        writer = Writer(mirror, notes.append)
        with noise_to(Path(os.devnull)), console.status(f"writing to {shown(uri)}"):
            writer.open(offline=False)
            left = writer.close(timeout=None)
    for note in notes:
        print(note, file=sys.stderr)
    if left:
        print(f"error: MLflow at {shown(uri)} still lacks {left} run(s) or parts of them", file=sys.stderr)
        return 1
    counts = f"{len(mirror.places())} trials, {len(writer.written)} of them written now"
    console.print(f"MLflow at {shown(uri)} has study {folder.name} whole: {counts}", soft_wrap=True, markup=False)
    return 0
