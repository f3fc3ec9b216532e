import asyncio
import resource
import threading
from collections import Counter
from contextlib import contextmanager

import pytest

from search import broker_journal
from search.broker import COMPANY_DEATHS, LOST, MAX_DEATHS, MAX_LOSSES, NO_FAULT, Broker
from search.broker_journal import BrokerJournal
from trainables.files import LEAVE

JOB = {"kind": "trial", "known_epoch": 0}
WHO = {"pid": 1}


class Followed(Broker):
    """A broker whose events are asked for one after another, as a proxy does."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._told = Counter()

    async def event(self, trial_id):
        """The trial's next event; of a report's metrics the epoch alone."""
        self._told[trial_id] += 1
        kind, payload = await self.next(trial_id, self._told[trial_id] - 1)
        return kind, {"epoch": payload["epoch"]} if kind == "report" else payload


def run(scenario, *arguments):
    """Runs a scenario against a fresh broker, in one event loop and within a generous limit."""
    return asyncio.run(asyncio.wait_for(scenario(Followed(*arguments)), 20))


async def got(broker, lane=0, at_work=()):
    """A job that arrived in its lane."""
    job = await broker.take(lane, WHO, 1, at_work)
    await broker.begun(job["trial_id"], job["attempt"])
    return job


async def answered(broker, trial_id, attempt, epoch, go_on):
    """A report and its verdict."""
    report = asyncio.ensure_future(broker.report(trial_id, attempt, {"epoch": epoch}))
    assert await broker.event(trial_id) == ("report", {"epoch": epoch})
    await broker.verdict(trial_id, epoch, go_on)
    return await report


def test_a_lane_gets_trials_in_order_and_waits_without_any():
    async def scenario(broker):
        assert await broker.take(0, WHO, 0.01) is None
        await broker.submit("a", dict(JOB))
        await broker.submit("b", dict(JOB))
        assert (await broker.take(0, WHO, 1))["trial_id"] == "a"
        assert (await broker.take(1, WHO, 1))["trial_id"] == "b"

    run(scenario)


def test_a_waiting_lane_wakes_for_a_trial():
    async def scenario(broker):
        take = asyncio.ensure_future(broker.take(0, WHO, 10))
        await asyncio.sleep(0)
        await broker.submit("a", dict(JOB))
        assert (await take)["trial_id"] == "a"

    run(scenario)


def test_a_proxy_may_ask_for_its_trial_before_it_is_there():
    async def scenario(broker):
        asked, never = (asyncio.ensure_future(broker.event(trial_id)) for trial_id in "ab")
        await asyncio.sleep(0)
        await broker.submit("a", dict(JOB))
        await broker.take(0, WHO, 1)
        await broker.finish("a", 1)
        assert await asked == ("done", None) and not never.done()
        await broker.close()
        assert await never == ("stopped", None)

    run(scenario)


def test_a_report_waits_for_its_verdict():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await broker.take(0, WHO, 1)
        assert await answered(broker, "a", 1, 1, True)
        assert not await answered(broker, "a", 1, 2, False)
        assert not await broker.report("a", 1, {"epoch": 3})

    run(scenario)


def test_a_restarted_lane_gets_its_trial_again_and_old_reports_are_refused():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await broker.take(0, WHO, 1)
        await answered(broker, "a", 1, 1, True)
        again = await broker.take(0, WHO, 1)
        assert (again["trial_id"], again["attempt"], again["known_epoch"]) == ("a", 2, 1)
        assert not await broker.report("a", 1, {"epoch": 2})
        await broker.finish("a", 1, error="stale")
        assert await answered(broker, "a", 2, 2, True)

    run(scenario)


def test_a_trial_that_kills_its_lane_again_and_again_fails_with_the_reason():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        for attempt in range(1, MAX_DEATHS + 1):
            assert (await got(broker))["attempt"] == attempt
        await broker.note("a", MAX_DEATHS, "RuntimeError: boom")
        assert await broker.take(0, WHO, 0.01) is None
        kind, reason = await broker.event("a")
        assert kind == "failed"
        assert "3 attempts" in reason and "boom" in reason

    run(scenario)


def test_deaths_with_an_epoch_between_them_are_no_trials_end():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        for attempt in range(1, 2 * MAX_DEATHS):
            assert (await got(broker))["attempt"] == attempt
            assert await answered(broker, "a", attempt, attempt, True)

    run(scenario)


def test_a_trial_that_hangs_is_tried_once_more():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        for _ in range(2):
            await got(broker)
            assert (await broker.silent())["a"] >= 0
            for _ in range(2):  # its frozen process outlives the first kill
                await broker.hung("a", "it hung")
        assert await broker.take(0, WHO, 0.01) is None
        assert await broker.event("a") == ("failed", "given up after 2 attempts: it hung")

    run(scenario)


def test_a_lane_that_dies_in_asking_has_tried_nothing():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        for _ in range(MAX_DEATHS + 1):
            await broker.take(0, WHO, 1)  # nobody takes it in
        assert (await got(broker))["trial_id"] == "a"

    run(scenario)


def test_a_lane_restarted_after_its_trial_was_stopped_takes_the_next():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await broker.submit("b", dict(JOB))
        await broker.take(0, WHO, 1)
        await broker.verdict("a", 1, False)
        assert (await broker.take(0, WHO, 1))["trial_id"] == "b"

    run(scenario)


@pytest.mark.parametrize(("outcome", "event"), [({}, ("done", None)), ({"error": "no"}, ("failed", "no"))])
def test_the_end_reaches_the_proxy(outcome, event):
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await broker.take(0, WHO, 1)
        await broker.finish("a", 1, **outcome)
        assert await broker.event("a") == event
        assert await broker.take(0, WHO, 0.01) is None

    run(scenario)


def test_closing_wakes_proxies_and_lanes_and_stops_reports():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await broker.take(0, WHO, 1)
        idle = asyncio.ensure_future(broker.take(1, WHO, 10))
        event = asyncio.ensure_future(broker.event("a"))
        await asyncio.sleep(0)
        await broker.close()
        assert await idle == "quit"
        assert (await event)[0] == "stopped"
        assert not await broker.report("a", 1, {"epoch": 1})
        assert await broker.take(0, WHO, 1) == "quit"

    run(scenario)


def test_unjudged_reports_do_not_wait():
    async def scenario(broker):
        await broker.submit("teacher", dict(JOB), judged=False)
        await broker.take(0, WHO, 1)
        assert await broker.report("teacher", 1, {"epoch": 1})

    run(scenario)


def test_a_lost_lanes_trial_goes_to_another_lane():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await broker.submit("b", dict(JOB))
        await broker.take(0, WHO, 1)
        assert await broker.lane_left(0), "it had a trial"
        assert not await broker.lane_left(0)
        again = await broker.take(1, WHO, 1)
        assert (again["trial_id"], again["attempt"]) == ("a", 2)

    run(scenario)


def test_a_dead_lane_that_still_asks_gets_nothing():
    async def scenario(broker):
        dead = asyncio.ensure_future(broker.take(0, {"pid": 1}, 10))
        await asyncio.sleep(0)
        await broker.lane_left(0)
        assert await dead is None
        older = asyncio.ensure_future(broker.take(1, {"pid": 2}, 10))
        await asyncio.sleep(0)
        newer = asyncio.ensure_future(broker.take(1, {"pid": 3}, 10))
        await asyncio.sleep(0)
        await broker.submit("a", dict(JOB))
        assert (await newer)["trial_id"] == "a" and await older is None

    run(scenario)


def test_what_no_other_attempt_can_mend_is_not_tried_again():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await broker.take(0, WHO, 1)
        await broker.note("a", 1, "image a.png is broken", True)
        assert await broker.take(0, WHO, 0.01) is None
        assert await broker.event("a") == ("bad_input", "image a.png is broken")

    run(scenario)


@pytest.mark.parametrize("why", [None, "killed for want of memory"])
def test_of_several_ranks_notes_what_is_hopeless_counts_and_then_the_first(why):
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await got(broker)
        await broker.note("a", 1, "mat1 and mat2 do not fit")
        await broker.note("a", 1, "reset by peer")
        job = await got(broker)
        assert job["met"] == (why or "mat1 and mat2 do not fit")
        await broker.note("a", 1, "of an older attempt", True)
        await broker.note("a", 2, "reset by peer")
        await broker.note("a", 2, "image a.png is broken", True)
        await broker.note("a", 2, "reset by peer")
        assert await broker.take(0, WHO, 0.01) is None
        assert await broker.event("a") == ("bad_input", "image a.png is broken")

    run(scenario, None, lambda worker: why)


def test_a_forgotten_trial_stops_at_its_report_and_nothing_of_it_is_kept():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await broker.take(0, WHO, 1)
        report = asyncio.ensure_future(broker.report("a", 1, {"epoch": 1}))
        await broker.event("a")
        await broker.forget("a")  # its proxy died: no verdict will come
        assert not await report
        await broker.finish("a", 1)
        assert broker._trials == {} and await broker.at_work() == {}
        assert "proxy died" in await broker.reason("a")

    run(scenario)


def test_a_late_verdict_answers_no_later_report():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await broker.take(0, WHO, 1)
        await answered(broker, "a", 1, 1, True)
        report = asyncio.ensure_future(broker.report("a", 1, {"epoch": 2}))
        await broker.event("a")
        await broker.verdict("a", 1, True)
        assert not report.done()
        await broker.verdict("a", 2, True)
        assert await report

    run(scenario)


def test_a_lane_may_have_several_trials_and_loses_those_that_it_does_not_name():
    async def scenario(broker):
        for name in "abc":
            await broker.submit(name, dict(JOB))
        assert (await broker.take(0, WHO, 1))["trial_id"] == "a"
        assert (await broker.take(0, WHO, 1, ["a"]))["trial_id"] == "b"
        await broker.finish("a", 1)
        assert (await broker.take(0, WHO, 1, ["b"]))["trial_id"] == "c"
        assert await broker.take(0, WHO, 0.01, ["b", "c"]) is None
        again = [await broker.take(0, WHO, 1, at_work) for at_work in ([], ["b"])]
        assert [(job["trial_id"], job["attempt"]) for job in again] == [("b", 2), ("c", 2)], "it was restarted"
        await broker.lane_left(0)
        assert (await broker.take(1, WHO, 1))["trial_id"] == "b"

    run(scenario)


def test_of_packed_trials_the_one_that_ends_the_process_is_found_and_the_others_are_not_blamed():
    async def scenario(broker):
        for name in "ab":
            await broker.submit(name, dict(JOB))
        for _ in range(COMPANY_DEATHS):
            jobs = [await got(broker), await got(broker, at_work=["a"])]
            assert [(job["trial_id"], job["alone"]) for job in jobs] == [("a", False), ("b", False)]
        for _ in range(MAX_DEATHS):
            job = await got(broker)
            assert (job["trial_id"], job["alone"]) == ("a", True)
            assert await broker.take(0, WHO, 0.01, ["a"]) is None, "the other one waits"
        job = await got(broker)
        assert (job["trial_id"], job["alone"]) == ("b", True)
        assert (await broker.event("a"))[0] == "failed"
        await broker.finish("b", job["attempt"])
        assert await broker.event("b") == ("done", None)

    run(scenario)


def test_a_trial_that_does_not_fit_beside_others_comes_next_and_alone():
    async def scenario(broker):
        for name in "abcd":
            await broker.submit(name, dict(JOB))
        await got(broker), await got(broker, at_work=["a"])
        await broker.give_back("b", 1)
        assert await broker.take(0, WHO, 0.01, ["a"]) is None, "its lane has room for it first"
        assert (await got(broker, 1))["trial_id"] == "b", "or another one has"
        assert (await got(broker, 0, ["a"]))["trial_id"] == "c"

    run(scenario)


def test_other_lanes_go_on_while_one_makes_room():
    async def scenario(broker):
        for name in "abcd":
            await broker.submit(name, dict(JOB))
        await got(broker, 1)
        await got(broker), await got(broker, at_work=["b"])
        await broker.give_back("c", 1)
        assert (await got(broker, 1, ["a"]))["trial_id"] == "d"
        await broker.finish("b", 1)
        job = await got(broker)
        assert (job["trial_id"], job["alone"]) == ("c", True)

    run(scenario)


def test_a_lane_that_is_to_leave_gives_its_trial_to_another():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await got(broker)
        await broker.leave(0)
        assert await answered(broker, "a", 1, 1, True) == LEAVE
        await broker.give_back("a", 1, alone=False)
        assert await broker.take(0, WHO, 1) == "quit"
        await broker.lane_left(0)
        again = await got(broker, 1)
        assert (again["attempt"], again["known_epoch"], again["alone"]) == (2, 1, False)
        assert await broker.take(0, WHO, 0.01) is None, "it may come back"

    run(scenario)


def test_a_process_that_went_with_its_node_is_no_fault_of_its_trials():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        for attempt in range(1, MAX_DEATHS + 3):
            assert (await got(broker))["attempt"] == attempt

    run(scenario, None, lambda worker: NO_FAULT)


def test_what_loses_its_process_again_and_again_has_failed_though_it_was_no_fault_of_its():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        for attempt in range(1, MAX_LOSSES + 1):
            assert (await got(broker))["attempt"] == attempt
        assert await answered(broker, "a", MAX_LOSSES, 1, True)
        for _ in range(MAX_LOSSES - 1):
            await got(broker)
        assert await broker.lane_left(0)
        assert await broker.event("a") == ("failed", LOST)

    run(scenario, None, lambda worker: NO_FAULT)


def test_of_packed_trials_the_one_that_ends_its_nodes_is_found():
    async def scenario(broker):
        for name in "ab":
            await broker.submit(name, dict(JOB))
        for _ in range(MAX_LOSSES):
            jobs = [await got(broker), await got(broker, at_work=["a"])]
            assert [job["alone"] for job in jobs] == [False, False]
        for _ in range(MAX_LOSSES):
            job = await got(broker)
            assert (job["trial_id"], job["alone"]) == ("a", True)
        job = await got(broker)
        assert (job["trial_id"], job["alone"]) == ("b", True)
        assert await broker.event("a") == ("failed", LOST)

    run(scenario, None, lambda worker: NO_FAULT)


def test_attempts_that_were_no_fault_of_its_are_not_told_as_its_own():
    whys = iter([NO_FAULT, NO_FAULT, None, NO_FAULT, None, None])

    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        job = await got(broker)
        await broker.give_back("a", job["attempt"], alone=False)
        for _ in range(6):
            await got(broker)
        assert await broker.take(0, WHO, 0.01) is None
        assert await broker.event("a") == ("failed", "given up after 3 attempts: its worker died")

    run(scenario, None, lambda worker: next(whys))


def test_a_process_that_dies_after_its_trials_last_report_ends_no_other_attempt():
    async def scenario(broker):
        await broker.submit("a", {**JOB, "config": {"epochs": 2}})
        await broker.submit("b", dict(JOB))
        await got(broker)
        for epoch in (1, 2):
            assert await answered(broker, "a", 1, epoch, True)
        assert (await got(broker))["trial_id"] == "b"
        assert await broker.event("a") == ("done", None)
        assert await broker.is_over("a")

    run(scenario)


@pytest.mark.parametrize("ended", ["queued", "trained"])
def test_a_proxy_of_a_trial_that_is_forgotten_waits_no_more(ended):
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        if ended == "trained":
            await got(broker)
        waiting = asyncio.ensure_future(broker.next("a", 0))
        await asyncio.sleep(0)
        await broker.forget("a")
        if ended == "trained":
            await broker.lane_left(0)
        assert await asyncio.wait_for(waiting, 5) == ("stopped", None)

    run(scenario)


async def packed(broker, silent_s):
    """Fills a lane with trials, each silent for so long; those that it got, and whether they are to be alone."""
    for name in silent_s:
        if await broker.is_over(name):
            await broker.submit(name, dict(JOB))
    got_so_far = {}
    while job := await broker.take(0, WHO, 0.01, list(got_so_far)):
        await broker.begun(job["trial_id"], job["attempt"])
        got_so_far[job["trial_id"]] = job["alone"]
    for name, seconds in silent_s.items():
        broker._trials[name].heard -= seconds
    return got_so_far


def test_a_packed_trial_that_alone_hangs_is_tried_once_more():
    async def scenario(broker):
        for _ in range(2):
            assert await packed(broker, {"a": 600, "b": 3}) == {"a": False, "b": False}
            await broker.hung("a", "it hung")
        await broker.lane_left(0)
        assert await broker.event("a") == ("failed", "given up after 2 attempts: it hung")

    run(scenario)


def test_of_packed_trials_that_hang_together_the_one_that_holds_them_up_is_found():
    async def scenario(broker):
        for _ in range(COMPANY_DEATHS):
            assert await packed(broker, {"a": 600, "b": 500}) == {"a": False, "b": False}
            await broker.hung("a", "it hung")
            await broker.hung("b", "it hung")
        for _ in range(2):
            assert await packed(broker, {"a": 600, "b": 0}) == {"a": True}
            await broker.hung("a", "it hung")
        assert await packed(broker, {"b": 0}) == {"b": True}
        assert await broker.event("a") == ("failed", "given up after 2 attempts: it hung")
        assert broker._trials["b"].deaths == 0

    run(scenario)


def test_why_a_process_died_is_told():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        for _ in range(2):  # once more: it is likely to meet that again
            await got(broker)
        assert await broker.take(0, WHO, 0.01) is None
        assert await broker.event("a") == ("failed", "given up after 2 attempts: killed for want of memory")

    run(scenario, None, lambda worker: "killed for want of memory")


def test_a_proxy_that_replaces_a_dead_one_is_told_what_that_had_not_passed_on():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await got(broker)
        await answered(broker, "a", 1, 1, True)
        report = asyncio.ensure_future(broker.report("a", 1, {"epoch": 2}))
        await broker.event("a")  # and dies
        first = await broker.answered("a")
        kind, metrics = await broker.next("a", first)
        assert (first, kind, metrics["epoch"]) == (1, "report", 2)
        await broker.verdict("a", 2, True)
        assert await report

    run(scenario)


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


@pytest.mark.parametrize("ended", ["forgotten", "finished"])
@pytest.mark.parametrize("left", [False, True])
def test_a_trial_may_end_while_it_is_asked_why_its_process_died(ended, left):
    asked, may_answer = threading.Event(), threading.Event()

    def why(worker):
        asked.set()
        assert may_answer.wait(10)

    async def scenario(broker):
        for name in "ab":
            await broker.submit(name, dict(JOB))
        await got(broker)
        looking = asyncio.ensure_future(broker.lane_left(0) if left else broker.take(0, WHO, 1))
        await asyncio.to_thread(asked.wait, 10)
        ending = asyncio.ensure_future(broker.forget("a") if ended == "forgotten" else broker.finish("a", 1))
        await asyncio.sleep(0.01)
        may_answer.set()
        await ending
        found = await looking
        assert found == (ended == "forgotten") if left else found["trial_id"] == "b"
        if ended == "forgotten":
            assert list(broker._trials) == ["b"]
        else:
            assert await broker.event("a") == ("done", None)

    run(scenario, None, why)


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
