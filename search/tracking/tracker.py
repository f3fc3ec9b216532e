"""The study's side of MLflow: a process of its own writes, and training only ever tells it what has changed.

MLflow's client takes longer for a trial than search and scheduler together; in a thread it would hold up both. What
there is to write is in the study's folder before that process is told, so nothing is lost with it.
"""

import atexit
import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from search.ledger import RUNNING, TrialRecord
from search.tracking.mirror import Mirror
from search.tracking.study_run import FILE, StudyRun
from search.tracking.writer import GRACE_S, STUDY, Writer
from trainables.errors import InputError

CLOSE_S = 120.0  # seconds that a study waits at its end for what is not written yet, the best model above all
MOST_DEATHS = 3  # of the writing process; another one goes on
NICE = 10  # training comes first


class Tracker:
    """Has one study written to MLflow.

    Args:
        uri: MLflow's tracking URI.
        folder: the study's, whose name is the study's.
        records: the folder of the ledger within it.
        offline: whether the server may be away as the study starts.
    """

    def __init__(self, uri: str, folder: Path, records: str = "trials", *, offline: bool = False):
        self.folder = Path(folder)
        self._run: StudyRun | None = None
        self._records, self._offline = records, offline
        self._place = (uri, self.folder)
        self._live: set[str] = set()
        self._notes: list[str] = []  # those that nobody has heard yet
        self._hear: Callable[[str], None] | None = None
        self._answers: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[tuple | None] = queue.SimpleQueue()
        self._changing = threading.RLock()  # of the study's run
        self._closing, self._deaths = False, 0
        self._left: int | None = None
        self._heard = threading.Event()  # all that the process had to say
        self._begin_process()
        atexit.register(lambda: self._process.kill())  # where nobody closed: it heeds no gentler signal
        for work in (self._listen, self._speak):
            threading.Thread(target=work, name="tracking", daemon=True).start()

    def _begin_process(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would take over the locks of Ray's threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=write_for, args=(theirs, *self._place), name="tracking", daemon=True)
        # Ctrl-C in a terminal reaches all, and so does the end of a Ray job; the study says what is to end, and a
        # process inherits what is blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that its end is seen here

    def hear(self, function: Callable[[str], None]) -> None:
        """Has a function told, in a thread of this process, what a person should know: the server is away, it is back.

        What was to be told before is told at once.
        """
        self._hear = function
        waiting, self._notes = self._notes, []
        for text in waiting:
            self._note(text)

    def _note(self, text: str) -> None:
        if self._hear is None:
            self._notes.append(text)
            return
        with contextlib.suppress(Exception):  # a view that fails does not end the listening
            self._hear(text)

    def open_study(
        self,
        tags: dict[str, Any],
        params: dict[str, Any],
        texts: dict[str, str],
        experiment: dict[str, str],
        dataset: dict[str, Any],
        resume: bool,
    ) -> None:
        """Begins a session: the experiment and its parent run are made, or found again.

        Args:
            tags, params: the parent run's.
            texts: its artifacts by name, as their text.
            experiment: the experiment's tags.
            dataset: what `dataset_inputs` takes.
            resume: whether the study was begun before.

        Raises:
            InputError: the name is taken, or the store refuses; what the study's folder says is as before then.
        """
        before = StudyRun.read(self.folder)
        with self._changing:
            run = self._run = StudyRun.read(self.folder) or StudyRun(self.folder, self.folder.name, adopts=resume)
            run.experiment, run.dataset = experiment, dataset
            run.begin(tags, params, texts)
        try:
            self._ask("open", self._offline)
        except InputError:
            self._run = None
            if before:
                before.save()
            else:
                (self.folder / FILE).unlink()
            raise

    def open_again(self) -> None:
        """Goes on with the run of a study that has ended, and leaves its status.

        Raises:
            InputError: the study has no run, or the store refuses.
        """
        self._run = StudyRun.read(self.folder)
        if self._run is None:
            raise InputError(f"--study: '{self.folder.name}' has nothing for MLflow yet; go on with it: --resume")
        self._ask("open", self._offline)

    def trial_started(self, record: TrialRecord) -> None:
        """Its record is in the ledger."""
        place = self._place_of(record)
        self._live.add(place)
        self._send("tell", place, True)

    def trial_changed(self, record: TrialRecord) -> None:
        """It reported or ended, as its record in the ledger says."""
        place = self._place_of(record)
        if record.state != RUNNING:
            self._live.discard(place)
        self._send("tell", place)

    def _place_of(self, record: TrialRecord) -> str:
        return f"{self._records}/{record.trial_id}"

    def study_metric(self, key: str, value: float, step: int) -> None:
        self._change(lambda run: run.add_metric(key, value, step))

    def study_artifact(self, path: Path) -> None:
        """A file of the study's folder, for the parent run; it is read when its turn comes."""
        self._change(lambda run: run.add_artifact(path))

    def study_tags(self, tags: dict[str, Any]) -> None:
        self._change(lambda run: run.set_tags(tags))

    def best_model(self) -> None:
        """The best student lies in the folder: it is logged as a model, and registered."""
        self._change(lambda run: run.set_best_model())

    def _change(self, change: Callable[[StudyRun], None]) -> None:
        if self._run is None:
            return  # it was interrupted before it was opened
        try:
            with self._changing:
                change(self._run)
        except OSError as error:  # a full disk, say: the next change writes this one too
            self._note(f"tracking: {self.folder / FILE} cannot be written ({error})")
        self._send("tell", STUDY)

    def close(self, status: str | None = "FINISHED", timeout: float = CLOSE_S) -> int | None:
        """Writes what is pending and ends the parent run; trials still open can be continued by a resumed study.

        Args:
            status: FINISHED, FAILED or KILLED; None leaves that of the parent run.
            timeout: seconds after which the rest stays for later.

        Returns:
            How much was not written (trials, and the study's own run as one), which `search/sync.py` does; 0 for a
            study that was never opened, None where that is not known.
        """
        if status and self._run:
            self._change(lambda run: run.end(status))
        self._closing = True
        self._send("close", timeout)
        try:
            self._process.join(timeout + 2 * GRACE_S)
        except KeyboardInterrupt:
            self._note("tracking: not waited for")
        self._process.kill()  # one that hangs; the others have ended
        self._heard.wait(GRACE_S)
        self._outgoing.put(None)
        return 0 if self._run is None else self._left

    def _send(self, *message: Any) -> None:
        """Never waits: a process that does not read is not the training's affair."""
        self._outgoing.put(message)

    def _speak(self) -> None:
        while (message := self._outgoing.get()) is not None:
            with contextlib.suppress(OSError):  # it has died, which the listener sees
                self._connection.send(message)

    def _ask(self, *message: Any) -> None:
        self._send(*message)
        if problems := self._answers.get():
            raise InputError(problems)

    def _listen(self) -> None:
        while True:
            try:
                kind, content = self._connection.recv()
            except (EOFError, OSError):
                if self._again():
                    continue
                break
            if kind == "note":
                self._note(content)
            elif kind == "left":
                self._left = content
            else:
                self._answers.put(content)
        self._heard.set()

    def _again(self) -> bool:
        """Has another process go on where one died."""
        if self._closing:
            return False
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            died = "tracking: the process that writes to MLflow keeps dying; search/sync.py writes what is missing"
            self._answers.put([died])  # to one that waits, if any
            self._note(died)
            return False
        self._note("tracking: the process that writes to MLflow died; another one goes on")
        self._begin_process()
        if self._run:
            self._send("open", True)
            for place in sorted(self._live.copy()):
                self._send("tell", place, True)
        return True


def write_for(connection: Connection, uri: str, folder: Path) -> None:
    """The writing process: what a `Tracker` sends goes to its `Writer`, until it closes it or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICE)
    saying = threading.Lock()  # the writer tells from threads of its own

    def say(kind: str, content: Any) -> None:
        with saying, contextlib.suppress(OSError):  # the study has gone, which is seen below
            connection.send((kind, content))

    writer = Writer(Mirror(uri, folder), on_note=lambda text: say("note", text))

    def open_study(*arguments: Any) -> None:
        warming.join()
        try:
            writer.open(*arguments)
        except InputError as error:
            say("answer", error.problems)
        else:
            say("answer", None)

    # In threads, so that the study is listened to meanwhile.
    warming = opening = threading.Thread(target=writer.warm_up, daemon=True)
    warming.start()
    while True:
        try:
            call, *content = connection.recv()
        except (EOFError, OSError):
            os._exit(1)  # at once: a resumed study writes the rest, and two may not write to one run
        if call == "open":
            opening = threading.Thread(target=open_study, args=content, daemon=True)
            opening.start()
        elif call == "close":
            opening.join(*content)
            say("left", writer.close(*content))
            return
        else:
            writer.tell(*content)
