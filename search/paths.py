"""Folders that commands write to and import from."""

import os
import sys
from pathlib import Path


def storage_folder(storage: str) -> Path:
    """The folder that --storage names; of an object store the working copy on this machine."""
    if is_url(storage):
        from trainables.remote import working_copy

        return working_copy(storage).resolve()
    return Path(storage.removeprefix("file://"))


def is_url(storage: str) -> bool:
    """Whether --storage names an object store."""
    return "://" in storage and not storage.startswith("file://")


def writable(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that there is, can be written; makes nothing."""
    nearest = next(path for path in [folder, *folder.resolve().parents] if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def import_from_current_folder() -> None:
    """Makes models of the user's own importable, as `student=mymodel:make`; last, so that they hide nothing."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
