"""Who gets which trial, and who is told what of it."""

import asyncio

import pytest

from tests.search.brokers import JOB, WHO, answered, got, run
from trainables.files import LEAVE


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
