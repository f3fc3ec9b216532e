import json
import math
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from search.ledger import FAILED, PRUNED
from search.tracking import writer as tracking_writer
from search.tracking.store import check_tracking, experiment_exists, flat_params, provenance, shown
from search.tracking.writer import Writer
from tests.search.studies import wait_for
from tests.search.tracking.tracked import make_record, metrics_of, play
from trainables.errors import InputError


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path}/store/mlflow.db"


@pytest.fixture
def make_writer(tmp_path, uri):
    def make(resume=False, params=None, place=uri, **keywords):
        writer = Writer(place, str(tmp_path / "artifacts"), "a study", spool=tmp_path / "lost.log", **keywords)
        writer.open_study({"pair": "a-b"}, params or {"trials": 4}, {"settings/space.py": "x = 1"}, resume)
        return writer

    return make


def children(writer):
    runs = writer._mlflow.search_runs([writer.experiment_id], f"tags.`mlflow.parentRunId` = '{writer.parent_id}'")
    return {run.data.tags["trial_id"]: run for run in runs}


def steps(writer, run, key="val/top1"):
    return [entry.step for entry in writer._mlflow.get_metric_history(run.info.run_id, key)]


def test_a_study_is_one_parent_with_a_child_a_trial(make_writer, tmp_path, uri):
    assert not experiment_exists(uri, "a study")
    assert not (tmp_path / "store").exists()
    told = []
    writer = make_writer(on_run_id=told.append)
    trial, per_stage, failing, baseline = (
        make_record("7", stages=[1, 2, 4]),
        make_record("8", stages=[1, 3], eps=[1.5, 0.5, 2.0]),
        make_record("9", stages=[]),
        make_record("scratch", role="baseline", distiller="none"),
    )
    play(writer, trial, [1, 2, 3])
    play(writer, per_stage, [1])
    writer.trial_started(failing)
    failing.finish(error="out of memory\n" + "x" * 9000)
    writer.trial_ended(failing)
    play(writer, baseline, [1, 2, 3])
    (tmp_path / "picture.txt").write_text("a picture")
    writer.study_metric("best", 53.0, 1)
    writer.study_metric("best", math.nan, 2)
    writer.study_artifact(tmp_path / "picture.txt")
    writer.study_tags({"verdict": "fine"})
    writer.close("FINISHED")

    assert experiment_exists(uri, "a study")
    assert told == [trial, per_stage, failing, baseline]
    runs = children(writer)
    assert {key: run.data.tags["state"] for key, run in runs.items()} == {
        "7": "complete",
        "8": PRUNED,
        "9": FAILED,
        "scratch": "complete",
    }
    assert {key: run.info.status for key, run in runs.items()} == {
        "7": "FINISHED",
        "8": "KILLED",
        "9": "FAILED",
        "scratch": "FINISHED",
    }
    assert {run.info.run_id for run in runs.values()} == {record.run_id for record in told}
    assert runs["7"].info.run_name == "trial 7"
    assert runs["scratch"].info.run_name == "baseline scratch"
    assert runs["scratch"].data.tags["role"] == "baseline"
    assert runs["7"].info.end_time == int(trial.ended * 1000)
    assert runs["9"].data.tags["reason"].startswith("out of memory")
    assert runs["7"].data.metrics == {"train/loss": 2 / 3, "val/top1": 53.0, "best/val_top1": 53.0}
    assert steps(writer, runs["7"]) == [1, 2, 3]

    names = set(runs["7"].data.params)
    assert names == set(runs["9"].data.params) == set(runs["scratch"].data.params)
    assert {"student", "teacher", "distiller", "eps", "temperature", "stages", "lr", "epochs", "opt"} <= names
    assert not names & {"seed", "data", "epoch"}
    assert set(runs["8"].data.params) - names == {"eps_stage1", "eps_stage3", "eps_logits"}
    assert runs["7"].data.params["stages"] == "1,2,4"
    assert runs["9"].data.params["stages"] == "none"
    assert runs["8"].data.params["eps"] == "1.5,0.5,2.0"
    assert runs["8"].data.params["eps_logits"] == "2.0"

    parent = writer._mlflow.get_run(writer.parent_id)
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "a study"
    assert parent.data.params == {"trials": "4"}
    assert parent.data.tags | {"role": "study", "pair": "a-b", "verdict": "fine"} == parent.data.tags
    assert steps(writer, parent, "best") == [1]
    assert {entry.path for entry in writer._mlflow.list_artifacts(writer.parent_id)} == {"picture.txt", "settings"}
    assert (tmp_path / "artifacts" / "a study").is_dir()
    assert not (tmp_path / "lost.log").exists()


def test_resuming_writes_each_epoch_once(make_writer):
    first = make_writer()
    running, done = make_record("1"), make_record("2")
    play(first, running, [1, 2], end=False)
    play(first, done, [1, 2, 3])
    first.close("KILLED")
    interrupted = children(first)["1"]
    assert (interrupted.info.status, interrupted.data.tags["state"]) == ("KILLED", "interrupted")
    assert first._mlflow.get_run(first.parent_id).info.status == "KILLED"

    # Epoch 3 reached the ledger and not MLflow; trial 1's record lost its run_id, as when killed before it was saved.
    running.add(metrics_of(3))
    run_id, running.run_id = running.run_id, None
    unseen = make_record("3")
    unseen.add(metrics_of(1))
    unseen.finish(error="lost")
    second = make_writer(resume=True, params={"trials": 9, "seed": 1})
    second.trial_started(running)
    for epoch in (1, 2):
        second.trial_epoch(running, metrics_of(epoch))
    running.finish()
    for record in (running, done, unseen):
        second.trial_ended(record)
    second.close("FINISHED")

    assert second.parent_id == first.parent_id
    runs = children(second)
    assert len(runs) == 3
    assert running.run_id == run_id
    assert (runs["1"].info.status, runs["1"].data.tags["state"]) == ("FINISHED", "complete")
    for trial_id, expected in {"1": [1, 2, 3], "2": [1, 2, 3], "3": [1]}.items():
        assert steps(second, runs[trial_id]) == expected
        assert steps(second, runs[trial_id], "train/loss") == expected
    assert steps(second, runs["2"], "best/val_top1") == [1, 2, 3]
    parent = second._mlflow.get_run(second.parent_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"trials": "4", "seed": "1"}
    assert parent.data.tags["resumed/trials"] == "9"


def test_ends_that_a_killed_session_had_not_told_are_written_on_resume(make_writer):
    writer = make_writer()
    told, cut_off, running, unknown = records = [make_record(trial_id) for trial_id in "0123"]
    play(writer, told, [1, 2, 3])
    for record in (cut_off, running):
        play(writer, record, [1], end=False)
    wait_for(lambda: len(children(writer)) == 3, "three runs")
    for record in (cut_off, unknown):  # ended by the ledger, and the session died
        record.add(metrics_of(record.epoch + 1))
        record.finish()
    resumed = make_writer(resume=True)
    resumed.catch_up(records)
    resumed.close()
    runs = children(resumed)
    assert {key: run.info.status for key, run in runs.items()} == {
        "0": "FINISHED", "1": "KILLED", "2": "KILLED", "3": "KILLED",
    }  # fmt: skip
    assert [runs[key].data.tags["state"] for key in "0123"] == ["complete", "pruned", "interrupted", "pruned"]
    assert steps(resumed, runs["1"]) == [1, 2] and steps(resumed, runs["3"]) == [1]


def test_a_taken_name_is_refused_without_resume(make_writer):
    make_writer().close()
    with pytest.raises(InputError, match="--resume"):
        make_writer()


def test_numbers_that_are_not_finite_are_dropped(make_writer):
    writer = make_writer()
    record = make_record()
    writer.trial_started(record)
    for epoch, loss in ((1, math.nan), (2, math.inf), (3, 1.0)):
        record.add({"epoch": epoch, "val/top1": 10.0, "train/loss": loss})
        writer.trial_epoch(record, record.history[-1])
    writer.close("KILLED")
    run = children(writer)["7"]
    assert steps(writer, run) == [1, 2, 3]
    assert steps(writer, run, "train/loss") == [3]


def test_a_refused_item_goes_to_the_spool_and_later_ones_are_written(make_writer, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_writer, "PAUSES_S", (0.01, 0.01))
    warnings = []
    writer = make_writer(on_warning=warnings.append)
    writer.study_metric("not * allowed", 1.0, 1)
    wait_for(lambda: writer.lost, "giving up")
    writer.study_metric("allowed", 1.0, 1)
    writer.close()
    (line,) = (tmp_path / "lost.log").read_text().splitlines()
    assert json.loads(line)["key"] == "not * allowed"
    assert steps(writer, writer._mlflow.get_run(writer.parent_id), "allowed") == [1]
    assert len(warnings) == 1


@pytest.fixture
def server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "s"),
    ]

    def healthy():
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except OSError:
            return False
        return True

    def start():
        with (tmp_path / "server.log").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        started.append(process)
        wait_for(healthy, "the server's start")
        return process

    started = []
    yield f"http://127.0.0.1:{port}", start
    for process in started:
        if process.poll() is None:
            stop(process)


def stop(process):
    """Ends the server and the worker processes in its own group, which it would leave behind."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.long
def test_a_server_that_dies_costs_no_trial(make_writer, server, tmp_path):
    uri, start = server
    process = start()
    check_tracking(uri)
    warnings = []
    writer = make_writer(place=uri, on_warning=warnings.append)
    first, second, third = make_record("1"), make_record("2"), make_record("3")
    play(writer, first, [1, 2, 3])
    play(writer, second, [1], end=False)
    wait_for(lambda: second.run_id and steps(writer, children(writer)["2"]) == [1], "the first two trials' writing")

    stop(process)
    play(writer, third, [1, 2, 3])
    second.add(metrics_of(2))
    writer.trial_epoch(second, metrics_of(2))
    wait_for(lambda: writer.lost, "giving up on an item")

    start()
    second.add(metrics_of(3))
    second.finish()
    writer.trial_ended(second)
    writer.close("FINISHED", timeout=120)
    runs = children(writer)
    assert steps(writer, runs["1"]) == steps(writer, runs["2"]) == [1, 2, 3]  # the outage left no hole
    lost = [json.loads(line) for line in (tmp_path / "lost.log").read_text().splitlines()]
    assert {line["trial_id"] for line in lost} <= {"2", "3"}
    assert all("error" in line for line in lost)
    assert len(warnings) == 1


def test_a_write_whose_answer_was_lost_is_not_written_twice(make_writer, monkeypatch):
    writer = make_writer()
    record, written = make_record("1"), writer._log
    monkeypatch.setattr(tracking_writer, "PAUSES_S", ())

    def lose_the_answer(*arguments, **keywords):
        written(*arguments, **keywords)
        raise ConnectionError("the server died before it answered")

    monkeypatch.setattr(writer, "_log", lose_the_answer)
    play(writer, record, [1], end=False)
    wait_for(lambda: writer.lost, "giving up on an item")
    monkeypatch.setattr(writer, "_log", written)
    play(writer, record, [2, 3])
    writer.close("FINISHED")
    assert steps(writer, children(writer)["1"]) == [1, 2, 3]


@pytest.mark.long
def test_closing_against_a_dead_server_ends_in_time(make_writer, server, tmp_path):
    uri, start = server
    process = start()
    writer = make_writer(place=uri)
    stop(process)
    play(writer, make_record("1"), [1, 2, 3])
    writer.close("KILLED", timeout=1.0)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "lost.log").read_text().splitlines()]
    assert kinds == ["started", "epoch", "epoch", "epoch", "ended", "close"]


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("http://127.0.0.1:9", "start the server or leave --tracking-uri out"),
        ("postgresql://user@127.0.0.1:9/db", "start the server or leave --tracking-uri out"),
        ("http://", "unreachable"),
        ("./mlruns", "sqlite:///"),
        ("file:///tmp/mlruns", "sqlite:///"),
        ("redis://host", "unknown scheme"),
    ],
)
def test_a_bad_place_is_refused_at_once(uri, text):
    with pytest.raises(InputError, match=text) as error:
        check_tracking(uri)
    assert uri in str(error.value)


def test_one_eps_in_a_list_is_one_eps():
    assert "eps_logits" not in flat_params(make_record(eps=[1.2]).config)


def test_a_password_is_never_shown():
    assert shown("postgresql://me:s3cret@host/db") == "postgresql://me:***@host/db"
    assert shown("http://host:5000") == "http://host:5000"
    with pytest.raises(InputError) as error:
        check_tracking("postgresql://me:s3cret@127.0.0.1:9/db")
    assert "s3cret" not in str(error.value)


def test_what_is_no_mlflow_store_is_refused(tmp_path):
    (tmp_path / "text.db").write_text("no database")
    with pytest.raises(InputError, match="unreachable"):
        experiment_exists(f"sqlite:///{tmp_path}/text.db", "study")
    with pytest.raises(InputError, match="it is a folder"):
        check_tracking(f"sqlite:///{tmp_path}")


def test_provenance_is_flat_text():
    facts = provenance()
    assert {"version/torch", "version/python", "version/mlflow", "platform"} <= set(facts)
    assert all(isinstance(value, str) for value in facts.values())
    assert socket.gethostname() not in facts.values()


def test_what_is_begun_anew_has_a_run_of_its_own(make_writer):
    """A failed baseline is trained again: the epochs of both attempts would be mixed in one run."""
    first = make_writer()
    record = make_record("kd", "baseline")
    play(first, record, [1, 2], end=False)
    record.finish("it broke")
    first.trial_ended(record)
    first.close()
    again = make_writer(resume=True)
    anew = make_record("kd", "baseline")
    anew.started = record.started + 5
    play(again, anew, [1, 2, 3])
    again.close()
    (run,) = children(again).values()
    assert run.info.run_id == anew.run_id != record.run_id and run.data.tags["state"] == "complete"
    assert steps(again, run) == [1, 2, 3]


def test_runs_that_a_killed_session_left_open_are_closed_by_an_interrupted_one(make_writer):
    first = make_writer()
    record = make_record()
    play(first, record, [1], end=False)
    wait_for(lambda: record.run_id, "its run")
    again = make_writer(resume=True)
    again.catch_up([record])
    again.close("KILLED")
    assert children(again)["7"].info.status == "KILLED" and children(again)["7"].data.tags["state"] == "interrupted"
    first.close()
