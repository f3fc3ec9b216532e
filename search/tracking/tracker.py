"""The study's side of MLflow: a process of its own writes, and training only ever sends it a few bytes.

MLflow's client takes longer for a trial than search and scheduler together; in a thread it would hold up both.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from search.ledger import TrialRecord
from search.tracking.writer import GRACE_S, Writer
from trainables.errors import InputError


class Tracker:
    """Has one study written to MLflow.

    Args:
        place, options: those of `Writer`, which is made of them in the other process.
        on_run_id, on_warning: as `Writer` has them; told in a thread of this process.
    """

    def __init__(
        self,
        *place: Any,
        on_run_id: Callable[[TrialRecord], None] = lambda record: None,
        on_warning: Callable[[str], None] = lambda text: None,
        **options: Any,
    ):
        self._on_run_id, self._on_warning = on_run_id, on_warning
        self._records: dict[str, TrialRecord] = {}
        self._answers: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._closing = False
        context = multiprocessing.get_context("spawn")  # a fork would take over the locks of Ray's threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=write_for, args=(theirs, place, options), name="tracking", daemon=True)
        self._process.start()
        theirs.close()  # so that its end is seen here
        self._listener = threading.Thread(target=self._listen, name="tracking", daemon=True)
        self._listener.start()

    def open_study(self, tags: dict, params: dict, artifacts: dict[str, Path | str], resume: bool) -> None:
        """As `Writer.open_study`.

        Raises:
            InputError: the name is taken, or the store refuses.
        """
        self._ask("open_study", tags, params, artifacts, resume)

    def catch_up(self, records: Iterable[TrialRecord]) -> None:
        """As `Writer.catch_up`.

        Raises:
            InputError: the store refuses.
        """
        records = list(records)
        self._records |= {record.trial_id: record for record in records}
        self._ask("catch_up", records)

    def trial_started(self, record: TrialRecord) -> None:
        self._records[record.trial_id] = record
        self._send("trial_started", record)

    def trial_epoch(self, record: TrialRecord, metrics: dict[str, float]) -> None:
        """An epoch of a trial that was started."""
        self._send("trial_epoch", record.trial_id, metrics)

    def trial_ended(self, record: TrialRecord) -> None:
        """Also for a trial of an earlier session: whatever MLflow lacks of it is then written."""
        self._records[record.trial_id] = record
        self._send("trial_ended", record)

    def study_metric(self, key: str, value: float, step: int) -> None:
        self._send("study_metric", key, value, step)

    def study_artifact(self, path: Path) -> None:
        """A file for the parent run; it is read when its turn comes."""
        self._send("study_artifact", path)

    def study_tags(self, tags: dict[str, Any]) -> None:
        self._send("study_tags", tags)

    def close(self, status: str = "FINISHED", timeout: float = 30.0) -> None:
        """Writes what is pending and ends the parent run; trials still open can be continued by a resumed study.

        Args:
            status: FINISHED, FAILED or KILLED.
            timeout: seconds after which the rest goes to the spool.
        """
        self._closing = True
        self._send("close", status, timeout)
        self._process.join(timeout + 2 * GRACE_S)
        self._process.kill()  # one that hangs; the others have ended
        self._listener.join()

    def _send(self, *message: Any) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            pass  # it has died, which the listener tells

    def _ask(self, *message: Any) -> None:
        self._send(*message)
        if problems := self._answers.get():
            raise InputError(problems)

    def _listen(self) -> None:
        while True:
            try:
                kind, *content = self._connection.recv()
            except (EOFError, OSError):
                break
            if kind == "run_id":
                trial_id, run_id = content
                record = self._records[trial_id]
                record.run_id = run_id
                self._on_run_id(record)
            elif kind == "warning":
                self._on_warning(*content)
            else:
                self._answers.put(*content)
        died = "tracking: the process that writes to MLflow died; training goes on, --resume writes what is missing"
        if not self._closing:
            self._answers.put([died])  # to one that waits, if any
            self._on_warning(died)


def write_for(connection: Connection, place: tuple, options: dict[str, Any]) -> None:
    """The writing process: what a `Tracker` sends goes to its `Writer`, until it closes it or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches all; the study says what is to end
    sending = threading.Lock()  # the writer tells from a thread of its own

    def tell(*message: Any) -> None:
        with sending:
            connection.send(message)

    writer = Writer(
        *place,
        **options,
        on_run_id=lambda record: tell("run_id", record.trial_id, record.run_id),
        on_warning=lambda text: tell("warning", text),
    )
    writer.warm_up()
    records: dict[str, TrialRecord] = {}
    while True:
        try:
            call, *content = connection.recv()
        except (EOFError, OSError):
            os._exit(1)  # at once: a resumed study writes the rest, and two may not write to one run
        if call in ("open_study", "catch_up"):
            try:
                getattr(writer, call)(*content)
            except InputError as error:
                tell("answer", error.problems)
            else:
                tell("answer", None)
        elif call == "trial_epoch":
            trial_id, metrics = content
            records[trial_id].add(metrics)
            writer.trial_epoch(records[trial_id], metrics)
        elif call == "close":
            writer.close(*content)
            return
        else:
            if call == "trial_started":
                records[content[0].trial_id] = content[0]
            elif call == "trial_ended":
                records.pop(content[0].trial_id, None)
            getattr(writer, call)(*content)
