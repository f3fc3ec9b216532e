"""Where answers lie: one file for some steps of an epoch, written whole or not at all and checked when it is opened.

A local folder's files are mapped into memory, so that all trials of a node share one copy in the page cache; on any
other file system of fsspec's a file is read whole.
"""

import contextlib
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from trainables.errors import InputError, one_line
from trainables.remote import Remote

VERSION = 1  # of this format
MAGIC = b"OFAKDTCH"
HEADER = struct.Struct("<8sIIQ4f")  # and the version, the payload's CRC-32 and length, four figures
OFFSET = 64  # bytes before the payload, so that records are aligned
ABOUT = "about.json"
NOTED_EVERY_S = 600.0


class Damaged(ValueError):
    """A file that is torn or of another shape: it must not be used, and may be written anew."""


class OtherVersion(ValueError):
    """A file that another version of this format wrote, which may still be in use there."""


class Part(NamedTuple):
    """What a file holds."""

    records: np.ndarray  # [steps, batch], read-only
    figures: tuple[float, ...]  # four that its writer gave


class Parts:
    """The files of one key.

    Args:
        root: a folder, or any URL of fsspec's.
        name: the key's folder in it.
        about: what the key is made of, kept beside the files for people to read.

    Raises:
        InputError: fsspec knows no such URL, or lacks a package for it.
    """

    def __init__(self, root: str, name: str, about: dict[str, Any]):
        fs, path = file_system(root)
        self.root, self.folder = root, f"{path.rstrip('/')}/{name}"
        self._told = json.dumps(about, indent=1, default=str).encode()
        self._local = isinstance(fs, LocalFileSystem)
        self._remote = None if self._local else Remote(f"{root.rstrip('/')}/{name}")
        self._noted = float("-inf")

    def open(self, file: str, shape: tuple[int, int], record: np.dtype) -> Part | None:
        """A file of so many steps and images a step; None where there is no such file.

        Raises:
            Damaged: it is torn, or of another shape.
            OtherVersion: another version of this format wrote it.
            OSError: the storage cannot be read.
        """
        if self._local:
            try:
                content = np.memmap(Path(self.folder, file), dtype=np.uint8, mode="r")
            except FileNotFoundError:
                return None
            except ValueError as error:  # an empty file cannot be mapped
                raise Damaged(f"{file} is empty") from error
        else:
            found = self._remote.read(file)
            if found is None:
                return None
            content = np.frombuffer(found, np.uint8)
        if len(content) < OFFSET:
            raise Damaged(f"{file} is torn")
        magic, version, crc, length, *figures = HEADER.unpack(bytes(content[: HEADER.size]))
        if magic == MAGIC and version != VERSION:
            raise OtherVersion(f"format {version} is not this version's, {VERSION}")
        payload = content[OFFSET:]
        if magic != MAGIC or length != shape[0] * shape[1] * record.itemsize or length != len(payload):
            raise Damaged(f"{file} is torn or of another shape")
        if zlib.crc32(payload) != crc:  # a gigabyte a second, and it brings the file into memory
            raise Damaged(f"{file} is torn")
        self._note_use()
        return Part(payload.view(record).reshape(shape), tuple(figures))

    def write(self, file: str, records: np.ndarray, figures: tuple[float, ...]) -> None:
        """Writes a file whole or not at all; of two that write the same one, the last stands.

        Raises:
            OSError: the storage cannot be written, or is full.
        """
        payload = np.ascontiguousarray(records).view(np.uint8).ravel()
        header = HEADER.pack(MAGIC, VERSION, zlib.crc32(payload), len(payload), *figures).ljust(OFFSET, b"\0")
        if self._local:
            place, about = f"{self.folder}/{file}", f"{self.folder}/{ABOUT}"
            os.makedirs(self.folder, exist_ok=True)
            if not os.path.exists(about):
                _replace(about, lambda out: out.write(self._told))
            _replace(place, lambda out: (out.write(header), out.write(payload)))
        else:
            if self._remote.read(ABOUT) is None:
                self._remote.write(ABOUT, self._told)
            self._remote.write(file, header + payload.tobytes())

    def _note_use(self) -> None:
        """Says now and then that somebody reads this key: what goes when the disk is full is what nobody has used."""
        if time.monotonic() - self._noted < NOTED_EVERY_S:
            return
        self._noted = time.monotonic()
        with contextlib.suppress(Exception):  # each store's client has its own, and some only may be read
            if self._local:
                os.utime(f"{self.folder}/{ABOUT}")
            else:
                self._remote.write(ABOUT, self._told)


def file_system(root: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a folder or URL, and the path in it.

    Raises:
        InputError: fsspec knows no such URL, or lacks a package for it.
    """
    try:
        return fsspec.core.url_to_fs(root)
    except (ValueError, ImportError) as error:
        raise InputError(f"teacher_store_at: {root} cannot be used ({one_line(error)})") from error


def _replace(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file beside its place and puts it there in one step; what a failure leaves is removed."""
    partial = f"{path}.{os.getpid()}-{threading.get_ident()}.partial"
    try:
        with open(partial, "wb") as out:
            write(out)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
