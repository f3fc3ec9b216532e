"""A folder in an object store: files go there and come from there whole or not at all, whatever becomes of the network.

It is any URL of fsspec's. Credentials are what its client finds in the environment.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from trainables.disk import UNWRITABLE, DiskError
from trainables.errors import InputError, one_line

SIDE_BY_SIDE = 8
CHANGES = 5  # so often a file may be written anew while it is brought
ANSWER_S, SLOWEST = 20.0, 0.5e6  # how long an answer may take, and the bytes a second of the slowest line
# botocore waits a minute for a connection and for an answer; the tries are ours, so that an outage can be told.
S3 = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 0}}}
EXTRAS = {"s3": "s3", "s3a": "s3"}  # by the URL's scheme: the extra of ours that brings its package
WHOLE = (
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "adl",
    "oci",
    "memory",
)  # where a file is there when it is whole
TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")  # what file systems call it
TAGS = ("ETag", "etag", "md5Hash", "content_md5", "sha256")


class Found(NamedTuple):
    """A file in the store: bytes, when it was written (seconds since 1970; 0.0: not known), and its hash there."""

    size: int
    when: float
    tag: str = ""

    @property
    def stamp_ns(self) -> int:
        """The time that a copy has here, by which it is known: no other file has just that."""
        return int(self.when) * 10**9 + zlib.crc32(self.tag.encode()) % 10**9


class Remote:
    """A folder in the store.

    Args:
        url: the folder's.

    Raises:
        InputError: fsspec knows no such URL, or a package is missing for it.
    """

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        self._scheme = self.url.partition("://")[0]
        try:
            self._fs, self._path = fsspec.core.url_to_fs(
                self.url, use_listings_cache=False, **(S3 if self._scheme in ("s3", "s3a") else {})
            )
        except ImportError as error:
            extra = EXTRAS.get(self._scheme)
            fix = f"pip install '.[{extra}]' in the repository's folder" if extra else "install it"
            raise InputError(
                f"storage: {self.url} needs a package that is missing ({one_line(error)}); {fix}"
            ) from error
        except ValueError as error:
            raise InputError(
                f"storage: {self.url} cannot be used ({one_line(error)}); give s3://BUCKET/FOLDER"
            ) from error

        if self._scheme in ("s3", "s3a"):
            self._fs.retries = 1  # of s3fs itself

    def at(self, name: str) -> "Remote":
        """A folder in it."""
        return Remote(f"{self.url}/{name}")

    def files(self, under: str = "") -> dict[str, Found]:
        """All files in it, or in a folder of it, by their paths from here; {} where it is not there.

        Raises:
            FileNotFoundError: a bucket is missing.
        """
        place = f"{self._path}/{under}".rstrip("/")
        found = self._call("find", place, detail=True)
        start = self._path.strip("/")
        return {
            name.strip("/").removeprefix(start).strip("/"): _found(about)
            for name, about in found.items()
            if not name.endswith(".partial")
        }

    def folders(self) -> list[str]:
        """The names of the folders right in it, in order, without looking into them; [] where it is not there."""
        try:
            found = self._call("ls", self._path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(one["name"].rstrip("/").rpartition("/")[2] for one in found if one["type"] == "directory")

    def read(self, name: str) -> bytes | None:
        """A small file's content, None where there is no such file."""
        try:
            return self._call("cat_file", f"{self._path}/{name}")
        except FileNotFoundError:
            return None

    def about(self, name: str) -> Found:
        """Raises: FileNotFoundError: there is no such file."""
        about = self._call("info", f"{self._path}/{name}")
        return _found(about)

    def write(self, name: str, content: bytes, *, new: bool = False) -> None:
        """Writes a file whole.

        Args:
            new: only where there is none; in one step where the store has one for that, as S3 does.

        Raises:
            FileExistsError: there is one, and it was to be a new one.
        """
        path = f"{self._path}/{name}"
        if new:
            self._make_room(path)
            self._call("pipe_file", path, content, mode="create", size=len(content))
        else:
            self._put(path, lambda place: self._call("pipe_file", place, content, size=len(content)))

    def push(self, path: Path, name: str) -> None:
        """Copies a file there."""
        self._put(
            f"{self._path}/{name}", lambda place: self._call("put_file", str(path), place, size=path.stat().st_size)
        )

    def pull(self, name: str, path: Path, found: Found | None = None) -> None:
        """Brings a file here, with the time that it has there; one that a running study writes may be a newer one.

        Args:
            name: its path from here.
            path: where it is to be.
            found: what is known of it; None asks.

        Raises:
            FileNotFoundError: there is no such file.
            DiskError: there is no room for it here, or nothing may be written.
            OSError: it did not come whole.
        """
        partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = found or self.about(name)
            for _ in range(CHANGES):
                self._call("get_file", f"{self._path}/{name}", str(partial), size=found.size)
                if (size := partial.stat().st_size) == found.size:
                    break
                found = self.about(name)  # it was written anew since
                if size == found.size:
                    break
            else:
                raise OSError(f"{self.url}/{name} came with {size} of {found.size} bytes")
            if found.when:
                os.utime(partial, ns=(found.stamp_ns, found.stamp_ns))
            os.replace(partial, path)
        except OSError as error:
            if error.errno in UNWRITABLE:  # nothing is written but here
                raise DiskError(error.errno, error.strerror, str(path)) from error
            raise
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()

    def pull_all(self, wanted: dict[str, Found], folder: Path) -> None:
        """Brings files, by their paths from here, into a folder; what is there as it is in the store stays."""
        lacking = [name for name, found in wanted.items() if not same(folder / name, found)]
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            for _ in pool.map(lambda name: self.pull(name, folder / name, wanted[name]), lacking):
                pass

    def remove(self, name: str) -> None:
        """Removes a file; one that is not there is removed already."""
        with contextlib.suppress(FileNotFoundError):
            self._call("rm_file", f"{self._path}/{name}")

    def remove_some(self, names: list[str]) -> None:
        """Removes files, many at once where the store can; some stores do not tell of those that they keep."""
        with contextlib.suppress(FileNotFoundError):
            self._call("rm", [f"{self._path}/{name}" for name in names])

    def remove_all(self) -> None:
        """Removes the folder."""
        with contextlib.suppress(FileNotFoundError):
            self._call("rm", self._path, recursive=True)

    def _put(self, path: str, put: Callable[[str], Any]) -> None:
        self._make_room(path)
        if self._scheme in WHOLE:
            put(path)
            return
        put(f"{path}.partial")
        self._fs.mv(f"{path}.partial", path)

    def _call(self, method: str, *arguments: Any, size: int = 0, **options: Any) -> Any:
        """Asks the file system; an answer that does not come is an error.

        A client alone may wait for ever: a server that takes a connection and says nothing does not end a PUT.

        Args:
            size: bytes that are to go or to come.

        Raises:
            TimeoutError: there was no answer in time.
        """
        from fsspec.asyn import AsyncFileSystem, sync

        if not isinstance(self._fs, AsyncFileSystem):
            return getattr(self._fs, method)(*arguments, **options)
        within = ANSWER_S + size / SLOWEST

        async def ask() -> Any:
            return await asyncio.wait_for(getattr(self._fs, f"_{method}")(*arguments, **options), within)

        try:
            return sync(self._fs.loop, ask)
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {within:.0f} s") from error

    def _make_room(self, path: str) -> None:
        if self._scheme not in WHOLE:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)


def same(path: Path, found: Found) -> bool:
    """Whether a file here is the one in the store, as `Remote.pull` left it."""
    try:
        about = path.stat()
    except OSError:
        return False
    return about.st_size == found.size and bool(found.when) and about.st_mtime_ns == found.stamp_ns


def working_copy(url: str) -> Path:
    """The folder of this machine that what lies at a URL is copied to: below `$XDG_CACHE_HOME`, else `~/.cache`."""
    url = url.rstrip("/")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    # A hash, as two URLs may read alike; and no %, which the URI of a database in there would have to escape.
    name = f"{re.sub('[^A-Za-z0-9._]+', '-', url)}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    return Path(cache) / "ofakd-search" / name


def _found(about: dict[str, Any]) -> Found:
    when = next((about[name] for name in TIMES if about.get(name)), 0.0)
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    when = when.timestamp() if isinstance(when, datetime) else float(when)
    return Found(int(about["size"]), when, str(next((about[name] for name in TAGS if about.get(name)), "")))


def names_of(folder: Path) -> Iterable[str]:
    """All whole files of a folder, by their paths from there."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(".partial"):
            yield str(path.relative_to(folder))
