"""Optuna's journal in a file, forced onto the disk as often as a study needs it."""

import json
import os
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file


class Journal(JournalFileBackend):
    """Optuna's journal, forced onto the disk once a trial is asked for and once it is told of.

    Optuna forces every line there, some twenty a trial. What a power cut may take is the lines since then; a process
    that dies loses none, as they are with the kernel already.

    Args:
        path: the file's.
    """

    def __init__(self, path: Path):
        super().__init__(str(path))
        self._whole = False

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with get_lock_file(self._lock):
            if not self._whole:
                self._drop_torn_line()
            with open(self._file_path, "ab") as file:
                file.write(lines.encode())

    def _drop_torn_line(self) -> None:
        """Takes away what a power cut or a full disk has left of a last line: the next one would be glued to it."""
        with open(self._file_path, "rb+") as file:
            content = file.read()
            if not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
        self._whole = True

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        with open(self._file_path, "rb") as file:
            os.fsync(file.fileno())


def sync(study: optuna.Study) -> None:
    """Waits until all that a study knows is on the disk; nothing where it keeps no journal of ours."""
    backend = getattr(getattr(study, "_storage", None), "_backend", None)
    if isinstance(backend, Journal):
        backend.sync()
