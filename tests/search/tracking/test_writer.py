"""When MLflow is written to, and what an outage does."""

import threading
import time

import pytest

from search.tracking import writer as writers
from search.tracking.mirror import Mirror
from search.tracking.writer import Writer
from tests.search.studies import wait_for
from tests.search.tracking.servers import stop
from tests.search.tracking.tracked import STUDY, Seen, Told, begin, make_record, metrics_of, points_of
from trainables.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / STUDY


@pytest.fixture
def make_writer(tmp_path, folder):
    """A session's writer, the study's ledger that tells it, and what it noted."""

    def make(uri=f"sqlite:///{tmp_path}/mlflow.db", offline=False):
        begin(folder)
        notes = []
        writer = Writer(Mirror(uri, folder), notes.append)
        writer.open(offline)
        return writer, Told(folder, writer.tell), notes

    return make


def test_what_comes_is_written_while_the_study_goes_on(make_writer, tmp_path, folder):
    writer, told, notes = make_writer()
    record = make_record("1")
    told.play(record, [1, 2], end=False)
    wait_for(lambda: Seen(writer._mirror.uri).children, "the run")
    wait_for(lambda: Seen(writer._mirror.uri).steps(Seen(writer._mirror.uri).children["1"]) == [1, 2], "two epochs")
    record.add(metrics_of(3))
    record.finish()
    told.changed(record)
    begin(folder).end("FINISHED")
    assert writer.close(60) == 0 and notes == []
    seen = Seen(writer._mirror.uri)
    assert seen.points(seen.children["1"]) == points_of(record)
    assert (seen.children["1"].info.status, seen.parent.info.status) == ("FINISHED", "FINISHED")


def test_what_a_killed_session_had_not_written_is_written_on_resume(make_writer, folder):
    told = Told(folder)
    ended, cut_off = make_record("1"), make_record("2")
    begin(folder)
    told.play(ended, [1, 2, 3])
    told.play(cut_off, [1], end=False)
    writer, _, _ = make_writer()
    begin(folder).end("KILLED")
    assert writer.close(60) == 0
    seen = Seen(writer._mirror.uri)
    assert {key: run.data.tags["state"] for key, run in seen.children.items()} == {"1": "complete", "2": "interrupted"}
    assert seen.points(seen.children["1"]) == points_of(ended)


def test_what_is_refused_is_told_once_and_holds_nothing_up(make_writer, folder, monkeypatch):
    monkeypatch.setattr(writers, "TOGETHER_S", 0.05)
    writer, told, notes = make_writer()
    run = begin(folder)
    bad, good = make_record("bad"), make_record("good")
    run.add_metric("not * allowed", 1.0, 1)  # of the study itself
    told.started(bad)
    bad.add({"epoch": 1, "not * allowed": 1.0, "val/top1": 1.0})
    told.changed(bad)
    writer.tell()
    wait_for(lambda: len(notes) == 2, "both notes")
    told.play(good, [1, 2, 3])
    run.end("FINISHED")
    assert writer.close(60) == 2, "the bad one and the study's own run"
    assert len(notes) == 2 and {"trial bad", "the study's own run"} == {
        note.partition("does not take ")[2].partition(" (")[0] for note in notes
    }
    seen = Seen(writer._mirror.uri)
    assert seen.points(seen.children["good"]) == points_of(good)
    assert seen.parent.info.status == "FINISHED"


def test_what_is_in_hand_when_time_runs_out_counts_as_missing(make_writer, folder, monkeypatch):
    writer, told, _ = make_writer()
    going_on = threading.Event()
    monkeypatch.setattr(writers, "GRACE_S", 0.1)
    monkeypatch.setattr(writer._mirror, "trial", lambda place, live: going_on.wait())
    told.play(make_record("1"), [1])
    assert writer.close(0.5) == 2, "the trial and the study's own run, which is not ended"
    going_on.set()


def test_a_place_where_nothing_answers_is_refused_unless_that_is_allowed(make_writer, folder):
    with pytest.raises(InputError, match="unreachable"):
        make_writer("http://127.0.0.1:9")
    writer, told, notes = make_writer("http://127.0.0.1:9", offline=True)
    told.play(make_record("1"), [1, 2, 3])
    began = time.monotonic()
    assert writer.close(600) == 2, "a trial and the study's own run"
    assert time.monotonic() - began < 60, "a server that is away is not waited for at the end"
    assert len(notes) == 1 and "waits in" in notes[0]


@pytest.mark.long
def test_an_outage_costs_nothing_and_writes_nothing_twice(make_writer, server, folder):
    uri, start = server
    process = start()
    writer, told, notes = make_writer(uri)
    records = [make_record(str(number)) for number in range(3)]
    told.play(records[0], [1, 2, 3])
    told.play(records[1], [1], end=False)
    wait_for(lambda: len(Seen(uri).children) == 2, "the first two trials")
    for _ in range(2):
        stop(process)
        records[1].add(metrics_of(records[1].epoch + 1))
        told.changed(records[1])
        wait_for(lambda: "waits in" in notes[-1] if notes else False, "the outage's note")
        told.play(records[2], [records[2].epoch + 1], end=False)
        process = start()
        wait_for(lambda: "answers again" in notes[-1], "the server's return")
    records[1].finish()
    told.changed(records[1])
    begin(folder).end("FINISHED")
    assert writer.close(120) == 0 and len(notes) == 4
    seen = Seen(uri)
    for record in records:
        assert seen.points(seen.children[record.trial_id]) == points_of(record)


@pytest.mark.long
def test_a_name_that_turns_out_to_be_taken_is_told_and_nothing_is_mixed(make_writer, server, folder):
    uri, start = server
    process = start()
    from search.tracking.store import connect

    client = connect(uri)
    client.create_run(client.create_experiment(STUDY))
    stop(process)
    writer, told, notes = make_writer(uri, offline=True)
    told.play(make_record("1"), [1, 2, 3])
    start()
    wait_for(lambda: notes and "of another study" in notes[-1], "the note")
    assert writer.close(60) == 2
    assert len(Seen(uri).runs()) == 1
