"""A study's working copy and its object store, without a study: who has what, and when."""

import json
import shutil
import threading
import time

import pytest

import search.storage
import trainables.remote
from search import lease, mirroring
from search.lease import mirrored
from search.ledger import COMPLETE, Ledger, TrialRecord
from search.mirroring import Mirroring
from search.resume import sole_session
from search.storage import JOURNAL, SESSION, STARTED, Storage
from tests.search.studies import wait_for
from trainables.errors import InputError
from trainables.files import CHECKPOINT, LOG, RECORD, STUDENT, TEST


@pytest.fixture
def machine(store, tmp_path, monkeypatch):
    """Goes to another machine: its storage and its working copy of study `s`."""

    monkeypatch.setattr(search.storage, "REACH_S", 120.0)  # the machine may be slow

    def go(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        storage = Storage(store.url)
        folder = storage.root / "s"
        folder.mkdir(parents=True, exist_ok=True)
        return storage, folder

    return go


def begin(folder):
    """What a session writes first."""
    (folder / STARTED).write_text("{}")
    (folder / JOURNAL).write_text("line 1\n")


def record(trial_id="0", epochs=2):
    return TrialRecord(trial_id, "trial", {"epochs": epochs}, {}, number=0)


def waited(mirror, one):
    """Waits until the store has a record."""
    there = threading.Event()
    mirror.after(one, there.set)
    assert there.wait(60)


def test_a_record_is_there_when_its_verdict_is_sent_and_the_journal_before_it(machine, store, monkeypatch):
    storage, folder = machine("a")
    with sole_session(folder, storage) as mirror:
        begin(folder)
        ledger, one, order = Ledger(folder / "trials"), record(), []
        write = mirror._remote.write
        monkeypatch.setattr(mirror._remote, "write", lambda name, content: (order.append(name), write(name, content)))
        mirror.watch(ledger)
        ledger.save(one)
        waited(mirror, one)
        records = [name for name in order if name in (JOURNAL, f"trials/0/{RECORD}")]
        assert records[:2] == [JOURNAL, f"trials/0/{RECORD}"]
        one.add({"epoch": 1, "val/top1": 50.0})
        ledger.save(one)
        waited(mirror, one)
        assert store.records("s")["0"]["history"] == one.history


def test_what_a_session_wrote_is_there_at_its_end_without_what_is_its_own(machine, store):
    storage, folder = machine("a")
    with sole_session(folder, storage):
        begin(folder)
        for name in ("run.log", "ray/x", "optuna.log.lock", "best.yaml.partial", "trials/0/learning_curve.png"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("text")
        with (folder / JOURNAL).open("a") as file:
            file.write("a line that is being wri")
    assert sorted(store.names("s")) == ["s/optuna.log", "s/run.log", "s/session.json", "s/started.json"]
    assert store.content("s/optuna.log") == b"line 1\n"


def test_another_machine_brings_what_it_needs_and_drops_what_is_no_more(machine, store):
    storage, folder = machine("a")
    with sole_session(folder, storage) as mirror:
        begin(folder)
        ledger, one = Ledger(folder / "trials"), record()
        mirror.watch(ledger)
        ledger.save(one)
    remote = storage.remote.at("s/trials/0")
    for name in (CHECKPOINT, STUDENT, LOG, TEST):  # as a lane does
        remote.write(name, name.encode())
    storage.remote.write("teachers/f/teacher.json", b"{}")
    storage.remote.write("teachers/f/teacher.safetensors", b"weights")

    storage, folder = machine("b")
    (folder / "trials" / "9").mkdir(parents=True)
    (folder / "trials" / "9" / RECORD).write_text("of another study of that name")
    assert storage.bring("s") == folder
    here = {str(path.relative_to(storage.root)) for path in storage.root.rglob("*") if path.is_file()}
    trial = {f"s/trials/0/{name}" for name in (RECORD, LOG, TEST)}
    assert here == {"s/started.json", "s/optuna.log", "teachers/f/teacher.json"} | trial
    assert storage.fetch(folder / "trials" / "0" / STUDENT).read_text() == STUDENT
    assert not storage.fetch(folder / "trials" / "1" / STUDENT).exists()
    assert [*Ledger(folder / "trials").records] == ["0"]


def test_what_only_the_last_sessions_machine_has_is_not_lost(machine, store):
    storage, folder = machine("a")
    with sole_session(folder, storage):
        begin(folder)
    (folder / JOURNAL).write_text("line 1\nline 2\n")  # as if the store had been away
    with sole_session(folder, storage):
        assert (folder / JOURNAL).read_text() == "line 1\nline 2\n"
    assert store.content("s/optuna.log") == b"line 1\nline 2\n"


def test_a_session_that_dies_as_it_begins_changes_nothing_of_that(machine, store, monkeypatch):
    storage, folder = machine("a")
    with sole_session(folder, storage):
        begin(folder)
    (folder / JOURNAL).write_text("line 1\nline 2\n")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "bring", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError), sole_session(folder, storage):
            pass
    with sole_session(folder, storage):
        assert (folder / JOURNAL).read_text() == "line 1\nline 2\n"


def test_what_another_machine_wrote_since_counts(machine, store):
    storage, folder = machine("a")
    with sole_session(folder, storage):
        begin(folder)
    other, elsewhere = machine("b")
    with sole_session(elsewhere, other):
        (elsewhere / JOURNAL).write_text("line 1\nline b\n")
    storage, folder = machine("a")
    (folder / JOURNAL).write_text("line 1\nline a\n")
    with sole_session(folder, storage):
        assert (folder / JOURNAL).read_text() == "line 1\nline b\n"


def test_two_machines_have_no_two_sessions(machine, store):
    storage, folder = machine("a")
    with sole_session(folder, storage):
        begin(folder)
        other, elsewhere = machine("b")
        with pytest.raises(InputError, match="is being run"), sole_session(elsewhere, other):
            pass
    with sole_session(elsewhere, other):
        pass


def test_an_ended_trial_leaves_no_checkpoint_and_its_log_comes(machine, store):
    storage, folder = machine("a")
    with sole_session(folder, storage) as mirror:
        begin(folder)
        ledger, one, two = Ledger(folder / "trials"), record("0"), record("1")
        mirror.watch(ledger)
        for each in (one, two):
            ledger.save(each)
            storage.remote.write(f"s/trials/{each.trial_id}/{CHECKPOINT}", b"state")
            storage.remote.write(f"s/trials/{each.trial_id}/{LOG}", b"words")
        one.state = COMPLETE
        ledger.save(one)
        seen = []
        ended = threading.Event()
        mirror.ended(one, lambda: (seen.append((folder / "trials" / "0" / LOG).read_text()), ended.set()))
        assert ended.wait(60) and seen == ["words"]
        assert [name for name in store.names("s") if CHECKPOINT in name] == [f"s/trials/1/{CHECKPOINT}"]
        assert store.records("s")["0"]["state"] == COMPLETE
        two.state = COMPLETE
        ledger.save(two)
        mirror.tidy(ledger)
        assert mirror.flush()
        assert not [name for name in store.names("s") if CHECKPOINT in name]


def test_a_store_that_is_away_is_waited_for_and_told_of_once(machine, store, monkeypatch):
    monkeypatch.setattr(mirroring, "SCAN_S", 0.2)
    storage, folder = machine("a")
    told = []
    with sole_session(folder, storage) as mirror:
        mirror.hear(told.append)
        begin(folder)
        ledger, one = Ledger(folder / "trials"), record()
        mirror.watch(ledger)
        there = threading.Event()
        with store.away(), monkeypatch.context() as patch:
            patch.setattr(trainables.remote, "ANSWER_S", 1.0)
            ledger.save(one)
            mirror.after(one, there.set)
            wait_for(lambda: told, "the note", 60)
            assert not there.is_set()
            assert not mirror.flush(0.5)
        assert there.wait(60)
        wait_for(lambda: len(told) == 2, "the second note", 60)
    assert "does not answer" in told[0] and "answers again" in told[1] and len(told) == 2
    assert store.records("s").keys() == {"0"}


def test_a_session_that_lost_its_study_writes_nothing_more(machine, store, monkeypatch):
    storage, folder = machine("a")
    signals = []
    monkeypatch.setattr(mirroring.os, "kill", lambda *sent: signals.append(sent))
    mirror = Mirroring(storage.remote.at("s"), folder, synced=True)
    mirror.lost()
    begin(folder)
    mirror.close()
    assert len(signals) == 1 and store.names("s") == []


def test_a_study_that_was_refused_leaves_nothing(machine, store):
    storage, folder = machine("a")
    with mirrored(storage, folder) as mirror:
        begin(folder)
        mirror.flush()
        assert json.loads(store.content("s/session.json"))["free"] is False
        mirror.forget()
    assert store.names("s") == []


def test_a_session_that_was_cut_off_undoes_nothing_of_the_one_that_took_over(machine, monkeypatch):
    storage, folder = machine("a")
    remote, ended = storage.remote.at("s"), threading.Event()
    monkeypatch.setattr(mirroring.os, "kill", lambda process, signal: ended.set())  # what ends this session
    with sole_session(folder, storage) as mirror:
        begin(folder)
        ledger, one = Ledger(folder / "trials"), record()
        mirror.watch(ledger)
        ledger.save(one)
        waited(mirror, one)
        now = lease._clock()
        monkeypatch.setattr(lease, "_clock", lambda: now + 300)  # as after a suspend
        holder = json.loads(remote.read(SESSION)) | {"token": "another's"}
        remote.write(SESSION, json.dumps(holder).encode())
        remote.write(f"trials/0/{RECORD}", b"newer")
        one.add({"epoch": 1, "val/top1": 50.0})
        ledger.save(one)
        assert ended.wait(60)
    assert remote.read(f"trials/0/{RECORD}") == b"newer"
    assert json.loads(remote.read(SESSION))["token"] == "another's"


def test_a_folder_that_is_removed_meanwhile_ends_no_thread(machine, monkeypatch):
    monkeypatch.setattr(mirroring, "SCAN_S", 0.05)
    storage, folder = machine("a")
    mirror = Mirroring(storage.remote.at("s"), folder, synced=True)
    shutil.rmtree(folder)
    time.sleep(0.5)
    assert mirror._scanning.is_alive()
    folder.mkdir()
    begin(folder)
    wait_for(lambda: "s/started.json" in storage.remote.files(), "another look", 60)
    mirror.close()
