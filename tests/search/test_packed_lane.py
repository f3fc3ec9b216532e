"""A lane that trains several trials side by side: the worker and the broker as they are, without Ray between them."""

import asyncio
import threading
from functools import partial

import pytest
import ray
import torch

from search.broker import Broker
from trainables import lane
from trainables.checkpoint import save_weights
from trainables.context import RunContext
from trainables.feed import Feed
from trainables.loop import Run
from trainables.teacher import WEIGHTS, build_teacher

LIMIT_S = 120
ILL = 5e-3  # the learning rate of the trial that meets an error


class Reference:
    """A call's coming result, as Ray's."""

    def __init__(self, future):
        self._future = future

    def future(self):
        return self._future


class Method:
    def __init__(self, method, loop):
        self._method, self._loop = method, loop

    def remote(self, *arguments, **options):
        return Reference(asyncio.run_coroutine_threadsafe(self._method(*arguments, **options), self._loop))


class Actor:
    """The broker in an event loop of its own, called as an actor is."""

    def __init__(self):
        self._broker, self._loop = Broker(), asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def __getattr__(self, name):
        return Method(getattr(self._broker, name), self._loop)

    def call(self, name, *arguments, **options):
        return getattr(self, name).remote(*arguments, **options).future().result(LIMIT_S)


@pytest.fixture
def study(monkeypatch, tiny, tmp_path):
    """A broker, and what it takes to submit trials and to serve them."""
    monkeypatch.setattr(ray, "get", lambda reference: reference.future().result(LIMIT_S))
    monkeypatch.setattr(lane, "GATHER_S", 0.3)
    return Study(tiny, tmp_path)


class Study:
    def __init__(self, tiny, folder):
        self.broker, self._tiny, self._folder = Actor(), tiny, folder
        self.errors = []
        save_weights(build_teacher(tiny(), num_classes=10), folder / "teacher" / WEIGHTS)

    def submit(self, name, **fields):
        config = self._tiny(**{"distiller": "none", "stages": [], "eps": 1.0, "epochs": 2} | fields).model_dump()
        folders = {"folder": str(self._folder / name), "teacher_folder": str(self._folder / "teacher")}
        job = {"kind": "trial", "config": config, **folders, "teacher_store": None, "known_epoch": 0}
        self.broker.call("submit", name, job, judged=False)

    def serve(self, size=4):
        """Starts a lane's worker."""

        def work():
            torch.set_num_threads(1)
            try:
                lane.Worker(
                    {"broker": self.broker, "lane": 0, "data": None}, partial(RunContext), {"pid": 1}
                ).serve_packed(size)
            except RuntimeError as error:
                self.errors.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def end(self, name):
        """A trial's last event, and how many epochs it reported."""
        epochs = 0
        while (event := self.broker.call("next", name, epochs))[0] == "report":
            epochs += 1
        return event, epochs

    def attempts(self, name):
        return self.broker._broker._trials[name].attempt

    def alone(self, name):
        return self.broker._broker._trials[name].alone

    def close(self, thread):
        self.broker.call("close")
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def meets_once(monkeypatch, error):
    """Has the first step of the trial whose learning rate is `ILL` raise an error, the first time that it is made."""
    met, train = [], Run.train

    def step(run, batch):
        if run.config.lr == ILL and not met:
            met.append(run)
            raise error
        train(run, batch)

    monkeypatch.setattr(Run, "train", step)


def test_those_that_come_together_read_together(study, monkeypatch):
    read, epoch = [], Feed.epoch
    monkeypatch.setattr(Feed, "epoch", lambda feed, number, first: read.append(number) or epoch(feed, number, first))
    for number in range(3):
        study.submit(str(number), lr=1e-3 * (1 + number))
    worker = study.serve(size=3)
    assert [study.end(str(number)) for number in range(3)] == [(("done", None), 2)] * 3
    assert read == [0, 1]
    study.submit("later")
    assert study.end("later") == (("done", None), 2)
    study.close(worker)


def test_one_that_fails_is_told_and_the_others_go_on(study):
    study.submit("good")
    study.submit("bad", lr=1e30, min_lr=1e30)
    worker = study.serve()
    assert study.end("good") == (("done", None), 2)
    (kind, reason), _ = study.end("bad")
    assert kind == "failed" and "loss is" in reason
    study.close(worker)


def test_one_that_finds_no_memory_beside_others_is_trained_alone(study, monkeypatch):
    meets_once(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    study.submit("small")
    study.submit("large", lr=ILL)
    worker = study.serve()
    assert study.end("small") == study.end("large") == (("done", None), 2)
    assert (study.attempts("small"), study.attempts("large")) == (1, 2)
    study.close(worker)


def test_where_reading_finds_no_memory_none_that_reads_is_blamed(study, monkeypatch):
    met, epoch = [], Feed.epoch

    def read(feed, number, first):
        if not met:
            met.append(feed)
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from epoch(feed, number, first)

    monkeypatch.setattr(Feed, "epoch", read)
    for number in range(3):
        study.submit(str(number), lr=1e-3 * (1 + number))
    worker = study.serve()
    assert [study.end(str(number)) for number in range(3)] == [(("done", None), 2)] * 3
    study.close(worker)


def test_an_error_that_poisons_the_process_ends_it_and_all_are_tried_again(study, monkeypatch):
    meets_once(monkeypatch, RuntimeError("CUDA error: an illegal memory access was encountered"))
    study.submit("healthy")
    study.submit("ill", lr=ILL)
    study.serve().join(LIMIT_S)
    assert study.errors == ["CUDA error: an illegal memory access was encountered"]
    worker = study.serve()  # as Ray Train does
    assert study.end("healthy") == study.end("ill") == (("done", None), 2)
    assert not study.alone("healthy") and not study.alone("ill"), "in company, so neither is blamed"
    study.close(worker)


def test_a_closing_study_stops_all_at_their_next_report(study):
    for name in "ab":
        study.submit(name, epochs=1000)
    worker = study.serve()
    assert study.broker.call("next", "a", 0)[0] == "report"
    study.close(worker)
    (kind, _), epochs = study.end("b")
    assert kind == "stopped" and epochs < 1000
