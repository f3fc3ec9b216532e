"""A trial's own log, `log.txt` in its folder: what it began with, each epoch, what Python said meanwhile, its end.

Rank 0 alone writes it, and appends, so that a trial that goes on after a restart goes on in its log. An entry is a line
with the time in UTC before it; further lines of it are indented.

What the process says while a trial trains is heard: by `warnings`, and by `logging` from INFO on, whatever its handlers
make of it. Both go where they went before, too. What other ranks and the loader's processes say is not heard.

Packed trials share a process. What is said in the thread that drives them is in the log of the trial whose turn it is.
What is said while they read their common batches, or in other threads (which load, store and report), cannot be told
apart and is in the logs of all. A warning that Python shows once is in the log of the trial that met it first.
"""

import json
import logging
import os
import platform
import re
import socket
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from trainables.config import TrialConfig
from trainables.files import LOG

MOST_HEARD = 1000  # entries of others between two of the trial's own; a library may tell of each step
PASSWORD = re.compile(r"(://[^:/@\s]+):[^@/\s]+@")  # in a URL

_open: dict[Path, "TrialLog"] = {}
_turn: ContextVar["TrialLog | None"] = ContextVar("turn", default=None)
_deaf: Callable[[], None] | None = None  # ends the listening, which goes on while any log is open


class TrialLog:
    """Writes one trial's log; a file that cannot be written ends nothing.

    Args:
        folder: the trial's; None keeps no log.
    """

    def __init__(self, folder: Path | None):
        self._path = None if folder is None else Path(folder) / LOG
        self._file: int | None = None  # its descriptor
        self._process, self._heard = os.getpid(), 0
        self._writing = threading.RLock()  # so that none writes to what was just closed

    def begin(self, config: TrialConfig, device: torch.device, world_size: int) -> None:
        """Opens the log, and tells where the trial runs and its whole configuration."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # An entry is one write to the end: a process that is killed leaves whole ones.
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return
        self._process = os.getpid()
        _open[self._path] = self
        _listen()
        name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        self.write(
            f"begins on {socket.gethostname()}, process {os.getpid()}, device {device}{name}, {world_size} worker(s), "
            f"{torch.get_num_threads()} CPU thread(s) each; Python {platform.python_version()}, "
            f"torch {torch.__version__}, timm {version('timm')}"
        )
        self.write(f"configuration: {json.dumps(config.model_dump(), sort_keys=True, default=str)}")

    def write(self, text: str) -> None:
        """Adds an entry of the trial's own."""
        if self._heard > MOST_HEARD:
            self._write(f"{self._heard - MOST_HEARD} further messages are left out")
        self._heard = 0
        self._write(text)

    def hear(self, text: str) -> None:
        """Adds an entry of somebody else's; beyond `MOST_HEARD` they are only counted."""
        self._heard += 1
        if self._heard <= MOST_HEARD:
            self._write(text)

    def epoch(self, metrics: dict[str, float], epochs: int) -> None:
        """Adds an epoch's metrics."""
        words = (f"{name} {value:.5g}" for name, value in metrics.items() if name != "epoch")
        self.write(f"epoch {metrics['epoch']}/{epochs}: {', '.join(words)}")

    def end(self, how: str | BaseException) -> None:
        """Adds the last entry, with the traceback of an error, and closes the log."""
        if isinstance(how, BaseException):
            how = f"failed: {type(how).__name__}\n{''.join(traceback.format_exception(how))}"
        self.write(how)
        with self._writing:
            if self._file is not None:
                os.close(self._file)
            self._file = None
        if self._path is not None and _open.get(self._path) is self:
            del _open[self._path]
        if not _open:
            _stop_listening()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Within this, what is heard in this thread is this trial's alone."""
        before = _turn.set(self)
        try:
            yield
        finally:
            _turn.reset(before)

    def _write(self, text: str) -> None:
        if self._file is None or self._process != os.getpid():  # a loader's, forked off, which may outlive the trial
            return
        if "://" in text:
            text = PASSWORD.sub(r"\1:***@", text)
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        lines = "\n    ".join(text.rstrip().splitlines())
        with self._writing, suppress(OSError):  # a full disk
            if self._file is not None:
                os.write(self._file, f"{time} {lines}\n".encode(errors="replace"))


def hear(text: str) -> None:
    """Adds an entry to the log of the trial whose turn it is, else to all that are open."""
    turn = _turn.get()
    for log in [turn] if turn else list(_open.values()):
        log.hear(text)


def _listen() -> None:
    """Has all that is logged and warned of heard, until `_stop_listening`.

    Through the factory of records, as a handler at the root would keep `logging` from its last resort and from
    `basicConfig`. Source: https://docs.python.org/3/library/logging.html#logging.setLogRecordFactory
    """
    global _deaf
    if _deaf:
        return
    make, show, listening = logging.getLogRecordFactory(), warnings.showwarning, True
    logged = getattr(show, "__module__", None) == "logging"  # after logging.captureWarnings(True)

    def make_and_hear(*args, **kwargs) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if listening and record.levelno >= logging.INFO:
            hear(_in_words(record))
        return record

    def show_and_hear(message, category, filename, lineno, file=None, line=None) -> None:
        show(message, category, filename, lineno, file, line)
        if listening and not logged:
            hear(f"{category.__name__}: {message} ({filename}:{lineno})")

    def stop() -> None:
        nonlocal listening
        listening = False
        if logging.getLogRecordFactory() is make_and_hear:  # else another one stands on it
            logging.setLogRecordFactory(make)
        if warnings.showwarning is show_and_hear:
            warnings.showwarning = show

    logging.setLogRecordFactory(make_and_hear)
    warnings.showwarning = show_and_hear
    _deaf = stop


def _stop_listening() -> None:
    global _deaf
    if _deaf:
        _deaf()
        _deaf = None


def _in_words(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage()
    except Exception:  # whoever logs it is told by its handlers
        message = f"{record.msg} {record.args}"
    text = f"{record.levelname} {record.name}: {message}"
    if record.exc_info and record.exc_info[1]:
        text += "\n" + "".join(traceback.format_exception(record.exc_info[1]))
    return text
