"""`console.log` of a study: what its sessions tell a person, one after the other, each from the line that begins it.

A session in the background prints there; of one on a terminal or in a pipe the same lines are kept there as well.
"""

import contextlib
import os
import re
import time
from pathlib import Path

from rich.console import Console

from search.terminal import PLAIN_WIDTH

CONSOLE = "console.log"
BEGUN = "--- session begun"


def begin(folder: Path) -> None:
    """Writes the line that a session begins with."""
    _Enduring(folder / CONSOLE).write(f"{BEGUN} {time.strftime('%Y-%m-%d %H:%M:%S')}\n")


def session_log(folder: Path, console: Console) -> Console:
    """Where the lines of a session that begins are kept; nowhere, where its console is the study's log already."""
    path = folder / CONSOLE
    if path.exists() and os.path.samestat(os.fstat(console.file.fileno()), path.stat()):
        return Console(quiet=True)
    begin(folder)
    return Console(file=_Enduring(path), highlight=False, soft_wrap=True, width=PLAIN_WIDTH)


def of_last_session(text: str) -> str:
    """What the latest session said; all, where none says that it begins, as those of an earlier version."""
    return re.split(rf"^{BEGUN} .*\n", text, flags=re.M)[-1]


class Both:
    """Prints on two consoles."""

    def __init__(self, console: Console, log: Console):
        self._consoles = console, log

    def print(self, *objects, **options) -> None:
        for console in self._consoles:
            console.print(*objects, **options)


class _Enduring:
    """A file that a session writes as far as its disk has room: a line that is lost ends no study."""

    def __init__(self, path: Path):
        self._path = path

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError), open(self._path, "a") as file:
            file.write(text)

    def flush(self) -> None:
        """Nothing is left to write: each line opens the file anew, which an object store's copy may replace."""
