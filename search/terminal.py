"""The terminal belongs to the person: Ray's, Optuna's and other libraries' noise goes to a file."""

import contextlib
import os
import sys
import traceback
import warnings
from pathlib import Path

from rich.console import Console

PLAIN_WIDTH = 120  # of tables in logs and pipes


def person_console(stderr: bool = False) -> Console:
    """A console on the terminal's own stdout or stderr, which stays there when the descriptors are redirected."""
    stream = os.fdopen(os.dup(2 if stderr else 1), "w", buffering=1)
    plain = not stream.isatty()
    return Console(file=stream, highlight=False, soft_wrap=plain, width=PLAIN_WIDTH if plain else None)


def span(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


@contextlib.contextmanager
def noise_to(path: Path):
    """Sends everything written to the process's stdout and stderr, by libraries in C too, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with open(path, "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # a disk that is full
                stream.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in saved:
            os.close(descriptor)


def log_exception() -> None:
    """Writes the traceback of the exception at hand to where `noise_to` sends it, as far as its disk has room."""
    with contextlib.suppress(OSError):
        traceback.print_exc()
