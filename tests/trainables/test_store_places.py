"""The teacher store where it is hard: on disks that are full, read-only or gone, and in object stores."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.trainables.stored import train
from trainables.context import RunContext
from trainables.errors import InputError
from trainables.loop import run_trial
from trainables.teacher import WEIGHTS


@pytest.fixture
def mounted(teacher_folder, tmp_path):
    """Trains in a process of its own, with the store on what a command mounts there; only that process sees it."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no process mount for itself")

    def trained(mount, name, fields):
        program = [sys.executable, "-m", "tests.trainables.stored", *map(str, (
            tmp_path / name, teacher_folder / WEIGHTS, tmp_path / "store", json.dumps(fields),
        ))]  # fmt: skip
        shell = ["unshare", "-rm", "sh", "-ec", f'{mount}; "$@"; ls "$STORE"/*', "sh", *program]
        found = subprocess.run(
            shell, capture_output=True, text=True, env=os.environ | {"STORE": str(tmp_path / "store")}
        )
        assert found.returncode == 0, found.stderr
        line, _, listing = found.stdout.partition("\n")
        return *json.loads(line), listing.split()

    return trained


def test_a_full_disk_leaves_the_teacher_to_answer_with_one_warning(tiny, lane, mounted, tmp_path):
    plain, *_ = train(tiny(epochs=2), lane(tmp_path / "other"), tmp_path / "plain")
    (tmp_path / "store").mkdir()
    mount = 'mount -t tmpfs -o size=16k none "$STORE"'  # three files fit beside what the answers are of
    found, shares, warnings, left = mounted(mount, "first", {"epochs": 2})
    assert found == plain and shares == [0.0, 0.0]
    assert [line.partition(" cannot")[2] for line in warnings] == [
        " be written (No space left on device): the teacher answers instead"
    ]
    assert "00000-000.logits" in left and not any("partial" in name for name in left)


def test_a_read_only_store_is_read_and_what_it_lacks_is_computed(tiny, lane, mounted, tmp_path):
    train(tiny(epochs=1), lane(), tmp_path / "writer")
    plain, *_ = train(tiny(epochs=2), lane(tmp_path / "other"), tmp_path / "plain")
    mount = 'mount --bind "$STORE" "$STORE"; mount -o remount,ro,bind "$STORE"'
    found, shares, warnings, _ = mounted(mount, "reader", {"epochs": 2})
    assert found == plain and shares == [1.0, 0.0]
    assert [line.partition(" cannot")[2] for line in warnings] == [
        " be written (Read-only file system): the teacher answers instead"
    ]


def test_a_store_that_is_no_folder_leaves_the_teacher_to_answer(tiny, lane, tmp_path):
    plain, *_ = train(tiny(epochs=1), lane(tmp_path / "other"), tmp_path / "plain")
    (tmp_path / "store").write_text("a file")
    assets = lane()
    assert train(tiny(epochs=1), assets, tmp_path / "first")[0] == plain
    assert len(assets.warnings) == 1 and "store cannot be read (Not a directory)" in assets.warnings[0]


def test_a_store_that_vanishes_amid_a_trial_is_made_anew(tiny, lane, tmp_path):
    plain, *_ = train(tiny(epochs=3), lane(tmp_path / "other"), tmp_path / "plain")
    reports, assets = [], lane()

    def report(metrics):
        reports.append(metrics)
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        return True

    run_trial(tiny(epochs=3), assets, RunContext(tmp_path / "first", report))
    assert [one["train/loss"] for one in reports] == [one["train/loss"] for one in plain]


def test_an_object_store_is_read_and_written_through_fsspec(tiny, lane, tmp_path):
    config = tiny(epochs=2, teacher_store_at=f"memory://{tmp_path.name}")
    first, written, _ = train(config, lane(), tmp_path / "first")
    second, read, _ = train(config, lane(), tmp_path / "second")
    assert first == second and (written, read) == ([0.0, 0.0], [1.0, 1.0])
    assert not (tmp_path / "store").exists()
    third, *_ = train(tiny(epochs=2), lane(), tmp_path / "third")
    assert third == first


@pytest.fixture
def bucket(monkeypatch):
    """A server that speaks S3, as AWS's do, with one bucket."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # it knows an earlier test's server
    boto3.client("s3").create_bucket(Bucket="teachers")
    yield server
    with contextlib.suppress(Exception):  # a test may have stopped it
        server.stop()


def test_s3_keeps_what_a_folder_would(tiny, lane, bucket, tmp_path):
    config = tiny(epochs=2, teacher_store_at="s3://teachers/store")
    plain, *_ = train(tiny(epochs=2), lane(), tmp_path / "plain")
    first, written, _ = train(config, lane(), tmp_path / "first")
    second, read, _ = train(config, lane(), tmp_path / "second")
    assert first == second == plain and (written, read) == ([0.0, 0.0], [1.0, 1.0])
    import s3fs

    kept = s3fs.S3FileSystem(skip_instance_cache=True).find("teachers/store")
    local = [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert sorted(path.rpartition("/")[2] for path in kept) == sorted(local)


def test_a_bucket_that_is_not_there_leaves_the_teacher_to_answer(tiny, lane, bucket, tmp_path):
    plain, *_ = train(tiny(epochs=1), lane(), tmp_path / "plain")
    assets = lane()
    found, *_ = train(tiny(epochs=1, teacher_store_at="s3://nowhere/store"), assets, tmp_path / "first")
    assert found == plain
    assert len(assets.warnings) == 1 and "s3://nowhere/store cannot be written" in assets.warnings[0]


def test_s3_that_vanishes_amid_a_trial_leaves_the_teacher_to_answer(tiny, lane, bucket, tmp_path):
    plain, *_ = train(tiny(epochs=3), lane(), tmp_path / "plain")
    reports, assets = [], lane()

    def report(metrics):
        if not reports:
            bucket.stop()
        reports.append(metrics)
        return True

    config = tiny(epochs=3, teacher_store_at="s3://teachers/store")
    run_trial(config, assets, RunContext(tmp_path / "first", report))
    assert [one["train/loss"] for one in reports] == [one["train/loss"] for one in plain]
    assert len(assets.warnings) == 1 and "s3://teachers/store cannot be" in assets.warnings[0]


def test_a_place_that_fsspec_does_not_know_is_bad_input(tiny, lane, tmp_path):
    with pytest.raises(InputError, match="teacher_store_at: nowhere://x cannot be used"):
        train(tiny(teacher_store_at="nowhere://x"), lane(), tmp_path / "first")
