"""What a broker knows again whose process was killed."""

import asyncio
import base64
import pickle
import resource
from contextlib import contextmanager

import pytest

from search import broker_journal
from search.broker_journal import BrokerJournal
from tests.search.brokers import JOB, WHO, answered, got, run
from trainables.files import LEAVE


@pytest.mark.parametrize("torn", [False, True])
def test_a_restarted_broker_knows_all_and_takes_repeated_calls(tmp_path, torn):
    """As Ray does it: those calls that were not answered are made again, and so, perhaps, are some that were."""
    journal = tmp_path / "broker.jsonl"

    async def before(broker):
        for name in "abcd":
            await broker.submit(name, dict(JOB))
        await got(broker, 0), await got(broker, 1)
        assert await answered(broker, "a", 1, 1, True)
        await broker.finish("b", 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(broker.report("a", 1, {"epoch": 2}), 0.01)

    run(before, journal)
    if torn:
        with journal.open("a") as file:
            file.write('["trial", {"trial_id": "a", "stop')

    async def after(broker):
        await broker.submit("c", dict(JOB))
        await broker.finish("b", 1)
        report = asyncio.ensure_future(broker.report("a", 1, {"epoch": 2}))
        assert await broker.event("b") == ("done", None)
        assert [(await broker.event("a"))[1]["epoch"] for _ in range(2)] == [1, 2]
        await broker.verdict("a", 2, True)
        assert await report
        assert await broker.report("a", 1, {"epoch": 2}), "it was answered"
        assert not await broker.report("a", 0, {"epoch": 3}), "of an older attempt"
        assert (await got(broker, 1))["trial_id"] == "c"
        assert (await got(broker, 2))["trial_id"] == "d"
        assert await broker.take(3, WHO, 0.01) is None

    run(after, journal)


def test_a_broker_that_was_closed_is_closed_when_it_is_restarted(tmp_path):
    journal = tmp_path / "broker.jsonl"

    async def before(broker):
        await broker.submit("a", dict(JOB))
        await broker.close()

    async def after(broker):
        assert await broker.take(0, WHO, 10) == "quit"
        assert (await broker.event("a"))[0] == (await broker.event("z"))[0] == "stopped"

    run(before, journal)
    run(after, journal)


def test_the_journal_keeps_what_is_left_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(broker_journal, "COMPACT_BYTES", 2000)
    journal = tmp_path / "broker.jsonl"

    async def scenario(broker):
        await broker.submit("stays", {**JOB, "long": "x" * 500})
        for number in range(50):
            await broker.submit(str(number), dict(JOB))
            await got(broker, 1) if number else await got(broker, 0)
            await broker.forget(str(number)) if number else None
            if number:
                await broker.finish(str(number), 1)

    run(scenario, journal)
    assert journal.stat().st_size < 8000
    assert set(BrokerJournal(journal).trials) == {"stays", "0"}


@contextmanager
def no_room(size):
    """No file of this process may be longer: as on a full disk, a line is written in part, or not at all."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("spare", [0, 10])
def test_a_full_disk_loses_no_trial(tmp_path, monkeypatch, spare):
    monkeypatch.setattr(broker_journal, "RETRY_S", 0.05)
    journal = tmp_path / "broker.jsonl"

    async def before(broker):
        await broker.submit("a", dict(JOB))
        await broker.submit("b", dict(JOB))
        await got(broker, 0), await got(broker, 1)
        with no_room(journal.stat().st_size + spare):
            asked = asyncio.ensure_future(broker.event("b"))
            assert await answered(broker, "a", 1, 1, True)
            await broker.finish("b", 1)
            assert await asked == ("done", None)
        assert list(tmp_path.iterdir()) == [journal], "no half of one lies about"
        await asyncio.sleep(0.1)
        if spare:
            await broker.silent()
        else:
            assert await answered(broker, "a", 1, 2, True)

    async def after(broker):
        assert await broker.event("b") == ("done", None)
        assert (await broker.event("a"))[1] == {"epoch": 1}
        assert await broker.answered("a") == (1 if spare else 2)

    run(before, journal)
    run(after, journal)


def test_a_broker_that_is_restarted_on_a_full_disk_knows_all(tmp_path):
    journal = tmp_path / "broker.jsonl"

    async def before(broker):
        await broker.submit("a", dict(JOB))

    async def after(broker):
        assert (await got(broker))["trial_id"] == "a"

    run(before, journal)
    with no_room(10):
        run(after, journal)
        run(after, journal)


def test_a_journal_of_trials_that_are_left_is_not_written_anew_at_each_that_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(broker_journal, "COMPACT_BYTES", 2000)
    anew, compact = [], BrokerJournal._compact
    monkeypatch.setattr(BrokerJournal, "_compact", lambda journal: (anew.append(1), compact(journal)))

    async def scenario(broker):
        await broker.submit("stays", {**JOB, "long": "x" * 20_000})
        for number in range(60):
            await broker.submit(str(number), dict(JOB))
            await broker.forget(str(number))

    run(scenario, tmp_path / "broker.jsonl")
    assert len(anew) < 5


def test_a_restarted_broker_knows_whom_to_kill_and_who_is_to_leave(tmp_path):
    journal = tmp_path / "broker.jsonl"

    async def before(broker):
        await broker.submit("a", dict(JOB))
        await broker.take(0, {"pid": 1, "handle": {"worker": "of a"}}, 1)
        await broker.begun("a", 1)
        await broker.leave(0)
        await broker.leave(1)
        await broker.lane_left(1)

    async def after(broker):
        assert await broker.hung("a", "it hung") == {"worker": "of a"}
        assert await broker.take(1, WHO, 0.01) is None, "it has left already"
        assert await answered(broker, "a", 1, 1, True) == LEAVE

    async def again(broker):
        assert await broker.take(0, WHO, 1) == "quit"

    for scenario in (before, after, again):
        run(scenario, journal)


def test_a_worker_that_somebody_else_has_written_is_not_unpickled(tmp_path):
    mine, theirs = BrokerJournal(None, b"key"), BrokerJournal(None, b"another")
    kept = mine.as_text({"pid": 1, "handle": {"worker": "of a"}})
    assert mine.handle_of(kept) == {"worker": "of a"}
    assert theirs.handle_of(kept) is None and mine.handle_of({"pid": 1}) is None
    unsigned = base64.b64encode(pickle.dumps({"worker": "of a"})).decode()
    assert mine.handle_of({"handle": unsigned}) is None


def test_a_restarted_broker_knows_which_nodes_had_no_room(tmp_path):
    journal = tmp_path / "broker.jsonl"

    async def before(broker):
        await broker.submit("a", dict(JOB))
        await got(broker)
        await broker.note("a", 1, "no space left", False, True, "node-1")

    async def after(broker):
        assert await broker.disks() == [("node-1", "no space left")]
        assert (await broker.lane_left(0), (await got(broker, 1))["attempt"]) == (True, 2)

    run(before, journal)
    for _ in range(2):  # the first has written it anew
        BrokerJournal(journal)
    run(after, journal)


def test_a_trial_that_waits_for_the_store_is_not_silent(tmp_path):
    journal = tmp_path / "broker.jsonl"

    async def before(broker):
        await broker.submit("a", dict(JOB))
        await got(broker)
        await asyncio.sleep(0.3)
        await broker.waits("a", 0)
        assert (await broker.silent())["a"] >= 0.3, "of an older attempt"
        await broker.waits("a", 1)
        assert (await broker.silent())["a"] < 0.2

    async def after(broker):
        assert (await broker.silent())["a"] < 0.2

    run(before, journal)
    run(after, journal)
