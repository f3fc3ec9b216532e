"""What becomes of a trial whose process died or hangs."""

import asyncio
import threading

import pytest

from search.broker import COMPANY_DEATHS, LOST, MAX_DEATHS, MAX_DISKS, MAX_LOSSES, NO_FAULT
from tests.search.brokers import JOB, WHO, answered, got, run
from trainables.files import LEAVE


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


@pytest.mark.parametrize("order", [1, -1])  # of two workers', of which one lost the other
def test_a_node_whose_disk_is_full_costs_a_trial_nothing_and_its_lane_goes_elsewhere(order):
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await broker.submit("beside", dict(JOB))
        for attempt in range(1, MAX_DEATHS + 2):
            jobs = [await got(broker), await got(broker, at_work=["a"])]
            assert [(job["trial_id"], job["alone"]) for job in jobs] == [("a", False), ("beside", False)]
            notes = [("reset by peer",), ("no space left", False, True, "node-1")]
            for note in notes[::order]:
                await broker.note("a", attempt, *note)
            assert await broker.take(0, WHO, 1) == "quit"
            assert not await broker.lane_left(0), "it had given it back"
            assert await broker.disks() == attempt * [("node-1", "no space left")]
        assert (await got(broker))["attempt"] == MAX_DEATHS + 2

    run(scenario)


def test_all_lanes_of_a_node_whose_disk_is_full_leave_it_and_no_others():
    async def scenario(broker):
        for lane, node in enumerate(["node-1", "node-1", "node-2"]):
            await broker.submit(str(lane), dict(JOB))
            await broker.take(lane, {"pid": lane, "ranks": [{"node": node}]}, 1)
        await broker.note("0", 1, "no space left", False, True, "node-1")
        assert [await answered(broker, name, 1, 1, True) for name in "12"] == [LEAVE, True]

    run(scenario)


def test_what_no_node_has_room_for_has_failed_for_that():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        for number in range(MAX_DISKS):
            job = await got(broker, number)
            await broker.note("a", job["attempt"], "no space left", False, True, f"node-{number}")
            await broker.lane_left(number)
        assert await broker.event("a") == ("failed", "3 nodes had no room for it, the last one: no space left")
        assert await broker.had_no_room("a")

    run(scenario)


def test_a_full_node_before_it_hides_no_full_folder_of_the_study():
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        await got(broker)
        await broker.note("a", 1, "no space left", False, True, "node-1")
        await broker.lane_left(0)
        for attempt in range(2, MAX_DEATHS + 2):
            assert (await got(broker, 1))["attempt"] == attempt
            await broker.note("a", attempt, "no space left", False, True)
        assert await broker.take(1, WHO, 0.01) is None
        assert (await broker.event("a"))[0] == "failed" and await broker.had_no_room("a")

    run(scenario)


@pytest.mark.parametrize("disk", [True, False])
def test_a_trial_that_finds_no_room_in_the_studys_own_folder_has_failed_for_that(disk):
    async def scenario(broker):
        await broker.submit("a", dict(JOB))
        for attempt in range(1, MAX_DEATHS + 1):
            await got(broker)
            await broker.note("a", attempt, "no space left" if disk else "boom", False, disk)
        assert not await broker.had_no_room("a")
        assert await broker.take(0, WHO, 0.01) is None
        assert (await broker.event("a"))[0] == "failed" and await broker.disks() == []
        assert await broker.had_no_room("a") == disk

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
