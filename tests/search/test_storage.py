"""A `--storage` that cannot be used: one line, exit code 2, nothing left; the server that speaks S3 is a real one."""

import re
import time

import pytest
import s3fs

from search import export, report, run, storage
from tests.ports import free_port
from tests.search.object_store import BUCKET
from tests.search.studies import MAIN_SPACE
from trainables.remote import Remote

STUDY = ("--space", MAIN_SPACE, "--set", "simulate=synthetic")


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs a command in an empty folder and returns its one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(url, command=run, arguments=STUDY) -> str:
        s3fs.S3FileSystem.clear_instance_cache()
        capfd.readouterr()
        assert command.main([*arguments, "--storage", url]) == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert not list(tmp_path.rglob("started.json"))
        return lines[0]

    return call


def test_a_bucket_that_is_not_there(store, refused):
    assert "storage: there is no bucket 'nowhere' at http://127.0.0.1" in refused("s3://nowhere/ofakd")


@pytest.mark.parametrize("action", ["s3:PutObject", "s3:*"])
def test_a_bucket_that_may_not_be_written_or_read(store, refused, action):
    store.deny(action)
    assert "cannot be read and written (PermissionError" in refused(store.url)


def test_credentials_that_are_missing(store, refused, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "there are no credentials for s3://studies/ofakd; set AWS_ACCESS_KEY_ID" in refused(store.url)


def test_an_endpoint_where_nobody_listens(refused, monkeypatch):
    endpoint = f"http://127.0.0.1:{free_port()}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    line = refused("s3://studies/ofakd")
    assert f"storage: s3://studies/ofakd cannot be used at {endpoint} (EndpointConnectionError" in line


def test_an_endpoint_that_says_nothing(store, refused, monkeypatch):
    monkeypatch.setattr(storage, "REACH_S", 1.0)
    with store.away():
        assert "storage: nobody answers for s3://studies/ofakd at http://127.0.0.1" in refused(store.url)


def test_a_store_that_nobody_knows(refused):
    assert "storage: nowhere://x cannot be used" in refused("nowhere://x")


def test_a_url_with_a_secret_in_it(refused):
    for url in ("s3://key:h1dden@studies/ofakd", "s3://key:h1d/den@studies/x", "s3://studies/x?secret=h1dden"):
        line = refused(url)
        assert "has a secret in it; credentials come from the environment" in line
        assert not re.search("h1d", line)


def test_a_study_that_is_not_there(store, refused):
    store.client.put_object(Bucket=BUCKET, Key="ofakd/mine/started.json", Body=b"{}")
    said = "there is no study 'other' in s3://studies/ofakd; there are mine"
    assert said in refused(store.url, report, ("--study", "other"))
    assert said in refused(store.url, export, ("--study", "other", "--to", "json", "--out", "out"))
    assert said in refused(store.url, run, (*STUDY, "--name", "other", "--resume"))


def test_a_misspelt_study_of_a_bucket_that_takes_long_to_list(store, refused, monkeypatch):
    store.client.put_object(Bucket=BUCKET, Key="ofakd/mine/started.json", Body=b"{}")
    store.client.put_object(Bucket=BUCKET, Key="ofakd/teachers/a/teacher.json", Body=b"{}")
    files = Remote.files

    def listed(remote, under=""):
        if remote.url == store.url and not under:
            time.sleep(2 * storage.REACH_S)
        return files(remote, under)

    monkeypatch.setattr(storage, "REACH_S", 5.0)
    monkeypatch.setattr(Remote, "files", listed)
    line = refused(store.url, report, ("--study", "mime"))
    assert line.endswith("there is no study 'mime' in s3://studies/ofakd; there are mine")


def test_a_name_that_is_taken(store, refused):
    store.client.put_object(Bucket=BUCKET, Key="ofakd/mine/started.json", Body=b"{}")
    line = refused(store.url, arguments=(*STUDY, "--name", "mine"))
    assert "--name: study 'mine' exists in s3://studies/ofakd; add --resume or take another name" in line
