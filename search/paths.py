"""Folders that commands write to and import from."""

import os
import sys
from pathlib import Path

from trainables.errors import InputError


def storage_folder(storage: str) -> Path:
    """The folder that --storage names.

    Raises:
        InputError: it is no folder of this machine.
    """
    scheme, separator, rest = storage.partition("://")
    if not separator:
        return Path(storage)
    if scheme == "file":
        return Path(rest)
    raise InputError(f"storage: '{storage}' is no folder; give a local or shared (NFS) folder")


def writable(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that there is, can be written; makes nothing."""
    nearest = next(path for path in [folder, *folder.resolve().parents] if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def import_from_current_folder() -> None:
    """Makes models of the user's own importable, as `student=mymodel:make`; last, so that they hide nothing."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
