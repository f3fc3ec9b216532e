"""Folders in object stores; the store is fsspec's in memory, or a server that speaks S3."""

import os

import pytest

from tests.search.conftest import store  # noqa: F401 - a fixture
from trainables.errors import InputError
from trainables.persist import Gone, persist
from trainables.remote import Remote, same, working_copy


@pytest.fixture(params=["memory", "sftp-like", "s3"])
def remote(request, tmp_path):
    """A folder in a store that has files whole, in one that does not, and on S3."""
    if request.param == "s3":
        return Remote(f"{request.getfixturevalue('store').url}/folder")
    if request.param == "memory":
        return Remote(f"memory://{tmp_path.name}/folder")
    return Remote(f"local://{tmp_path}/remote/folder")


def test_files_go_there_and_come_back_as_they_were(remote, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"first")
    remote.push(path, "deep/a.bin")
    remote.write("b.txt", b"second")
    found = remote.files()
    assert {name: one.size for name, one in found.items()} == {"deep/a.bin": 5, "b.txt": 6}
    assert remote.files("deep").keys() == {"deep/a.bin"} and remote.at("deep").files().keys() == {"a.bin"}
    remote.pull_all(found, tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "a.bin").read_bytes() == b"first" and remote.read("b.txt") == b"second"
    assert all(same(tmp_path / "back" / name, one) for name, one in found.items())
    remote.remove("b.txt")
    remote.remove("b.txt")
    assert remote.files().keys() == {"deep/a.bin"} and remote.read("b.txt") is None
    remote.write("b.txt", b"third")
    remote.remove_some(["b.txt"])
    assert remote.files().keys() == {"deep/a.bin"}
    remote.remove_all()
    assert remote.files() == {}


def test_its_folders_are_those_of_one_level(remote):
    assert remote.folders() == []
    for name in ("b/deep/x", "a/y", "z"):
        remote.write(name, b"")
    assert remote.folders() == ["a", "b"]


def test_a_new_file_is_no_others(remote):
    remote.write("lease", b"mine", new=True)
    with pytest.raises(FileExistsError):
        remote.write("lease", b"another's", new=True)
    assert remote.read("lease") == b"mine"


def test_what_is_here_already_is_not_brought_again(remote, tmp_path):
    remote.write("a", b"12345")
    found = remote.files()
    remote.pull_all(found, tmp_path)
    before = (tmp_path / "a").stat().st_ino
    remote.pull_all(found, tmp_path)
    assert (tmp_path / "a").stat().st_ino == before
    os.utime(tmp_path / "a", (1, 1))
    remote.pull_all(found, tmp_path)
    assert (tmp_path / "a").stat().st_ino != before


def test_what_comes_torn_leaves_the_file_as_it_was(remote, tmp_path, monkeypatch):
    call = Remote._call

    def torn(self, method, *arguments, **options):
        answer = call(self, method, *arguments, **options)
        if method == "get_file":
            os.truncate(arguments[1], 3)
        return answer

    monkeypatch.setattr(Remote, "_call", torn)
    (tmp_path / "a").write_bytes(b"as it was")
    remote.write("a", b"12345")
    with pytest.raises(OSError, match="came with 3 of 5 bytes"):
        remote.pull("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"as it was"
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


def test_what_is_written_anew_while_it_is_brought_comes_as_it_is_now(remote, tmp_path):
    remote.write("log", b"one")
    before = remote.files()
    remote.write("log", b"one two")
    remote.pull_all(before, tmp_path)
    assert (tmp_path / "log").read_bytes() == b"one two" and same(tmp_path / "log", remote.about("log"))


def test_work_is_done_again_until_the_store_is_back():
    tries, told = [], []

    def work():
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("away")
        return "done"

    assert persist(work, away=told.append) == "done" and len(tries) == 3 and len(told) == 2


def test_waiting_ends_with_time_or_when_it_is_given_up():
    def work():
        raise ConnectionError("away")

    with pytest.raises(Gone, match="ConnectionError: away"):
        persist(work, 0.0)
    with pytest.raises(Gone):
        persist(work, given_up=lambda: True)


def test_a_file_that_is_not_there_is_an_answer():
    def work():
        raise FileNotFoundError("a")

    with pytest.raises(FileNotFoundError):
        persist(work)


@pytest.mark.parametrize(("url", "said"), [("nowhere://x", "cannot be used"), ("abfs://x", "needs a package")])
def test_a_store_that_cannot_be_used_from_here(url, said):
    with pytest.raises(InputError, match=f"storage: {url} {said}"):
        Remote(url)


def test_the_missing_package_has_an_extra_of_ours(monkeypatch):
    import fsspec.core

    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(InputError, match=r"pip install '\.\[s3\]' in the repository"):
        Remote("s3://bucket/x")


def test_two_urls_have_two_working_copies(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    urls = ("s3://a/b", "s3://a-b", "gs://a/b")
    assert len({working_copy(url) for url in urls}) == 3
    assert working_copy("s3://a/b") == working_copy("s3://a/b/")
    assert all(working_copy(url).parent == tmp_path / "ofakd-search" for url in urls)
