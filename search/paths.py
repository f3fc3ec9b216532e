"""Folders that commands write to."""

import os
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
