"""A job's files on its node and in the store; the store is fsspec's in memory."""

import time

import pytest

from trainables import job_files
from trainables.files import CHECKPOINT, LOG, RECORD, STUDENT
from trainables.job_files import NodeFiles, files_of
from trainables.remote import Remote, names_of
from trainables.teacher import ABOUT, WEIGHTS


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(job_files.tempfile, "gettempdir", lambda: str(tmp_path))
    return Remote(f"memory://{tmp_path.name}")


def made(place, kind="trial", rank=0, waits=lambda: None):
    folder = f"{place.url}/s/trials/7" if kind == "trial" else f"{place.url}/s/teacher"
    job = {"kind": kind, "folder": "f", "teacher_folder": "t", "storage": place.url, "remote": folder}
    return files_of(job | {"teacher_remote": f"{place.url}/teachers/abc"}, rank, print, waits)


def write(folder, **files):
    for name, text in files.items():
        (folder / NAMES[name]).write_text(text)


NAMES = {"checkpoint": CHECKPOINT, "log": LOG, "student": STUDENT}


def test_a_folder_that_all_share_is_taken_as_it_is():
    files = files_of({"folder": "f", "teacher_folder": "t", "remote": None}, 0, print)
    assert (str(files.folder), str(files.teacher), files.shared) == ("f", "t", True)


def test_a_trial_goes_on_on_another_node(place):
    place.write(f"s/trials/7/{RECORD}", b"the study's own")
    first = made(place)
    first.bring()
    write(first.folder, checkpoint="epoch 1", log="one")
    first.keep()
    write(first.folder, checkpoint="epoch 2")  # this one never counted
    second = made(place, rank=1)
    second.bring()
    assert second.folder != first.folder
    found = {name: (second.folder / name).read_text() for name in names_of(second.folder)}
    assert found == {CHECKPOINT: "epoch 1", LOG: "one"}


def test_what_a_killed_attempt_has_left_here_is_no_beginning(place):
    first = made(place)
    first.bring()
    write(first.folder, checkpoint="epoch 9", student="half")
    second = made(place)
    second.bring()
    assert list(names_of(second.folder)) == []


def test_what_killed_processes_have_left_on_a_node_goes_as_the_next_trial_comes(place, tmp_path):
    at_work = made(place, rank=1)
    at_work.bring()
    write(at_work.folder, checkpoint="epoch 1")
    killed = tmp_path / "ofakd-search-another-0"
    killed.mkdir()
    write(killed, checkpoint="epoch 9")
    (killed / job_files.LOCK).touch()  # nobody holds it
    made(place).bring()
    assert not killed.exists() and (at_work.folder / CHECKPOINT).exists()


def test_the_checkpoint_comes_last(place, monkeypatch):
    files = made(place)
    files.bring()
    order, push = [], Remote.push
    monkeypatch.setattr(Remote, "push", lambda self, path, name: (order.append(name), push(self, path, name)))
    write(files.folder, checkpoint="epoch 2", student="weights", log="two")
    files.keep()
    assert order[-1] == CHECKPOINT and sorted(order) == sorted([CHECKPOINT, STUDENT, LOG])
    order.clear()
    write(files.folder, log="two and more")
    files.keep()
    assert order == [LOG]


def test_an_ended_trial_leaves_its_files_in_the_store_alone(place):
    files = made(place)
    files.bring()
    write(files.folder, checkpoint="epoch 2", student="weights", log="two")
    files.keep()
    (files.folder / CHECKPOINT).unlink()  # as a trial does that is whole
    write(files.folder, log="two, the end")
    files.end(failed=False)
    assert place.files("s").keys() == {f"s/trials/7/{STUDENT}", f"s/trials/7/{LOG}"}
    assert place.read(f"s/trials/7/{LOG}") == b"two, the end"
    assert not files.folder.exists()


def test_a_teacher_that_was_made_comes_to_other_nodes_once(place, monkeypatch, tmp_path):
    files = made(place, "teacher")
    files.bring()
    for name, text in ((WEIGHTS, "weights"), (ABOUT, "{}")):
        (files.folder / name).write_text(text)
    files.folder.rename(files.teacher)
    files.end(failed=False)
    assert place.files("teachers").keys() == {f"teachers/abc/{WEIGHTS}", f"teachers/abc/{ABOUT}"}
    assert place.files("s") == {}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another node"))
    brought, pull = [], Remote.pull
    monkeypatch.setattr(Remote, "pull", lambda self, name, *rest: (brought.append(name), pull(self, name, *rest)))
    for _ in range(2):
        trial = made(place)
        trial.bring()
        assert (trial.teacher / WEIGHTS).read_text() == "weights"
    assert brought == [WEIGHTS, ABOUT]


@pytest.mark.parametrize("silent", [False, True])
def test_it_is_told_again_and_again_that_a_store_is_waited_for(place, monkeypatch, silent):
    """Whether it refuses, or keeps one answer waiting."""
    monkeypatch.setattr(job_files, "TELL_S", 0.05)
    told, files_of_store = [], Remote.files
    end = time.monotonic() + 0.6

    def away(self, *arguments):
        if silent:
            time.sleep(max(0.0, end - time.monotonic()))
        if time.monotonic() < end:
            raise ConnectionError("away")
        return files_of_store(self, *arguments)

    monkeypatch.setattr(Remote, "files", away)
    made(place, waits=lambda: told.append(1)).bring()
    assert len(told) >= 3
    count = len(told)
    time.sleep(0.2)
    assert len(told) == count


def test_a_store_that_is_away_is_waited_for(place, monkeypatch):
    files = made(place)
    files.bring()
    write(files.folder, checkpoint="epoch 1")
    tries, push = [], Remote.push

    def failing(self, path, name):
        tries.append(name)
        if len(tries) < 3:
            raise ConnectionError("away")
        push(self, path, name)

    monkeypatch.setattr(Remote, "push", failing)
    files.keep()
    assert place.read(f"s/trials/7/{CHECKPOINT}") == b"epoch 1" and len(tries) == 3
    assert isinstance(files, NodeFiles)
