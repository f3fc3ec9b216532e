"""A study whose disk is away for a while, and then full."""

import contextlib
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.search import studies
from tests.search.cluster.disturbed import assert_whole, records, reported, write_space

pytestmark = pytest.mark.long
AWAY_S = 61
ROOM = 4 * 2**20  # bytes: for a session's records and logs, and no checkpoint


class Disk:
    """A file system of its own in a folder.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path):
        self.folder, self._image = folder / "disk", folder / "disk.ext4"
        self.folder.mkdir()
        with self._image.open("wb") as image:
            image.truncate(64 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", self._image], check=True)
        subprocess.run(["mount", "-o", "loop,noatime", self._image, self.folder], check=True)

    @contextlib.contextmanager
    def away(self):
        """Within this whoever writes to it waits, as on a server of files that does not answer."""
        subprocess.run(["fsfreeze", "--freeze", self.folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", self.folder], check=True)

    @contextlib.contextmanager
    def full(self, but: int = 0):
        """Within this it has no room, but for so many bytes."""
        filling = self.folder / "filling"
        with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        os.truncate(filling, filling.stat().st_size - but)
        try:
            yield
        finally:
            filling.unlink()

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(tmp_path):
    try:
        made = Disk(tmp_path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user may not make a file system: {error}")
    yield made
    made.close()


def test_a_disk_that_is_away_costs_time_and_one_that_is_full_the_session(disk, tmp_path, monkeypatch):
    place = disk.folder
    monkeypatch.setenv("OFAKD_TEST", str(place))
    study = ("--space", write_space(tmp_path), "--name", "s", "--concurrency", "1")
    running = studies.Followed(studies.start(*study, cwd=place))

    def more_epochs(count: int) -> bool:
        return running.process.poll() is not None or reported(place) >= count

    studies.wait_for(lambda: more_epochs(3), "three epochs")
    with disk.away():
        time.sleep(AWAY_S)
    before = reported(place)
    studies.wait_for(lambda: more_epochs(before + 3), "three more epochs")
    assert running.process.poll() is None, running.end()
    with disk.full():
        ran = running.end()
        assert ran.code == 1 and ran.err.count("\n") == 1, ran.err
        assert "No space left on device" in ran.err and "--resume" in ran.err and "Traceback" not in ran.err
    with disk.full(but=ROOM):
        ran = studies.run(*study, "--resume", cwd=place)
        assert ran.code == 1 and ran.err.count("\n") == 1, ran.err
        # What a checkpoint takes before it fails may be what the driver's own files lack at that moment.
        met = r"trial \w+ cannot write its files: .*|OSError: \[Errno 28\] No space left on device"
        assert re.match(rf"error: ({met}); see runs/s/run.log; go on with: .* --resume\n", ran.err), ran.err
    before = records(place)
    ran = studies.run(*study, "--resume", cwd=place)
    assert ran.code == 0, ran.err + ran.out
    assert_whole(place)
    for name, record in before.items():
        assert records(place)[name]["history"][: len(record["history"])] == record["history"]
    assert studies.left_behind(place) == []
