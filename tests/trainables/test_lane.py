"""How a lane's worker treats a job that fails; whole lanes run in tests/search."""

import errno
import os
from functools import partial

import pytest
import ray

from trainables import lane
from trainables.context import RunContext, TrialFailure
from trainables.disk import DiskError
from trainables.errors import InputError

JOB = {
    "kind": "trial",
    "trial_id": "7",
    "attempt": 1,
    "known_epoch": 0,
    "teacher_folder": "t",
    "folder": "f",
    "teacher_store": "s",
}


class Remote:
    """A method of an actor, without Ray."""

    def __init__(self, method):
        self.remote = method


class Broker:
    """Keeps what it is told."""

    def __init__(self):
        self.notes, self.ended = [], []
        self.note = Remote(lambda *note: self.notes.append(note))
        self.begun = Remote(lambda *_: None)
        self.finish = Remote(lambda *_, **outcome: self.ended.append(outcome))


def worker(broker, elsewhere=False, world_size=1):
    """Of a lane on `node-1`."""
    lane_of = {"broker": broker, "data": None, "elsewhere": elsewhere}
    return lane.Worker(lane_of, partial(RunContext, world_size=world_size), {"ranks": [{"node": "node-1"}]})


@pytest.fixture
def outcome(monkeypatch, tiny):
    monkeypatch.setattr(ray, "get", lambda ref: ref)

    def call(error, world_size=1, broker=None, elsewhere=False, **job):
        def fail(*_):
            raise error

        monkeypatch.setattr(lane, "run_trial", fail)
        broker = broker or Broker()
        worker(broker, elsewhere, world_size)._do({**JOB, **job, "config": tiny().model_dump()})
        return broker.ended[0]

    return call


@pytest.mark.parametrize(("given", "test"), [({}, False), ({"test": False}, False), ({"test": True}, True)])
def test_a_trial_is_tested_where_its_job_says_so(monkeypatch, tiny, given, test):
    runs, config, context, assets = [], tiny(), RunContext("f", lambda _: True), object()
    monkeypatch.setattr(lane, "run_trial", lambda *arguments: runs.append(arguments))
    assert lane._run({**JOB, **given, "config": config.model_dump()}, assets, context) is None
    assert runs == [(config, assets, context, 0, test)]


def test_a_trial_that_raises_fails_alone(outcome):
    assert outcome(ValueError("boom")) == {"error": "ValueError: boom", "bad_input": False}
    assert outcome(InputError("image: broken")) == {"error": "image: broken", "bad_input": True}


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_all_ranks_meet_alike_is_the_trials_failure(outcome, world_size):
    assert outcome(TrialFailure("the loss is nan"), world_size) == {"error": "the loss is nan"}


def test_with_several_workers_an_error_may_be_anothers_death_and_restarts_the_workers(outcome):
    broker = Broker()
    with pytest.raises(RuntimeError, match="reset by peer"):
        outcome(RuntimeError("connection reset by peer"), 2, broker)
    assert broker.notes == [("7", 1, "RuntimeError: connection reset by peer", False, False, None)]


def test_with_several_workers_one_ranks_bad_input_frees_the_others_and_is_not_tried_again(outcome):
    broker = Broker()
    with pytest.raises(InputError):
        outcome(InputError("image a.png is broken"), 2, broker)
    assert broker.notes == [("7", 1, "image a.png is broken", True, False, None)]


def test_a_poisoned_cuda_context_ends_the_process(outcome):
    with pytest.raises(RuntimeError):
        outcome(RuntimeError("CUDA error: device-side assert triggered"))


def test_a_full_disk_ends_the_process_and_the_trial_may_go_on_elsewhere(outcome):
    broker = Broker()
    with pytest.raises(OSError, match="No space left"):
        outcome(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), broker=broker)
    assert (
        broker.notes == [("7", 1, "OSError: [Errno 28] No space left on device", False, True, None)]
        and broker.ended == []
    )
    assert outcome(FileNotFoundError(errno.ENOENT, "no such file"))["error"].startswith("FileNotFoundError")


@pytest.mark.parametrize(
    ("remote", "path", "elsewhere", "own"),
    [
        ("s3://b/t", "/shared/s/trials/7/checkpoint.pt", True, True),
        ("s3://b/t", "/shared/s/trials/7/checkpoint.pt", False, False),
        (None, "/shared/s/trials/7/checkpoint.pt", True, False),
        (None, "/tmp/torchinductor_me/a.py", True, True),
        (None, None, True, False),
    ],
)
def test_the_broker_is_told_of_a_nodes_own_disk_where_there_are_other_nodes(
    monkeypatch, outcome, remote, path, elsewhere, own
):
    monkeypatch.setattr(lane, "files_of", lambda job, *_: lane.JobFiles(job))
    broker, folder = Broker(), "/shared/s/trials/7"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    with pytest.raises(OSError, match="No space left"):
        outcome(full, broker=broker, elsewhere=elsewhere, remote=remote, folder=folder)
    [(*_, disk, node)] = broker.notes
    assert disk and node == ("node-1" if own else None)


def test_in_a_pack_too_it_is_noted_for_whose_files_there_is_no_room(monkeypatch):
    class Files:
        def bring(self):
            raise DiskError(errno.ENOSPC, "no room")

    monkeypatch.setattr(ray, "get", lambda ref: ref)
    monkeypatch.setattr(lane, "files_of", lambda *_: Files())
    broker = Broker()
    with pytest.raises(DiskError):
        worker(broker, elsewhere=True)._packed({**JOB, "remote": "s3://b/t"}, 2)
    assert broker.notes == [("7", 1, "DiskError: [Errno 28] no room", False, True, "node-1")]


def test_warnings_go_with_the_next_report():
    worker = lane.Worker({"broker": None}, RunContext, {})
    worker._warnings.put("full")
    assert (worker._told(), worker._told()) == ({"warnings": ["full"]}, {})


def test_while_a_job_waits_for_the_store_the_broker_is_told_of_all_that_wait(monkeypatch):
    told = []
    monkeypatch.setattr(lane, "files_of", lambda job, rank, warn, waits: waits())
    broker = Broker()
    broker.waits = Remote(lambda *ticket: told.append(ticket))
    worker = lane.Worker({"broker": broker}, RunContext, {})
    worker._at_work["8"] = {"trial_id": "8", "attempt": 2}
    worker._files(JOB)
    assert told == [("7", 1), ("8", 2)]
