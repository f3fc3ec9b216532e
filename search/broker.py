"""The broker between Tune's proxies and the lanes: an asyncio actor that takes no CPU.

The searcher submits a trial, and the trial's proxy asks for its events, one after another; a lane takes it, reports an
epoch and waits for Tune's verdict, which the study's Tune callback sends. Each try of a lane at a trial has a number,
and reports with an old one are refused, so that every epoch arrives exactly once.

Its own death loses nothing: Ray starts it again and repeats the calls that were not answered. What it knew is in its
journal, and every call may come twice.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from search.broker_journal import BrokeredTrial, BrokerJournal
from trainables.files import LEAVE

VERDICT_WAIT_S = 120.0  # a verdict that does not come within this counts as "go on"
MAX_DEATHS = 3  # of a process that trained just this one, without an epoch between; then the trial has failed
COMPANY_DEATHS = 2  # of one that trained others too; then it has no company, so that it shows whose fault it is
MAX_LOSSES = 10  # without an epoch between, each no fault of its: then it may be what ends the nodes
MAX_DISKS = 3  # nodes without an epoch between them whose disks had no room: then no other has, either
LOST = f"given up: {MAX_LOSSES} times without an epoch its process was lost with its node or lane, or as memory ran out"
NO_FAULT = ""  # why a process died, where the trial has no part in it


def _nobody_knows(worker: dict[str, Any]) -> None:
    return None


class Broker:
    """See the module; every method is a remote call.

    Args:
        journal: the file of what must outlive this process; None keeps nothing.
        why: says why a worker's process died, None where that is not known, `NO_FAULT` where the trial has no part in
            it. What is known, such as want of memory, it will meet again: it is tried once more.
        key: as for `BrokerJournal`.
    """

    def __init__(
        self,
        journal: Path | None = None,
        why: Callable[[dict[str, Any]], str | None] = _nobody_knows,
        key: bytes = b"",
    ):
        self._journal, self._why = BrokerJournal(journal, key), why
        self._trials = self._journal.trials
        self._news: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)  # by trial
        self._verdicts: dict[str, asyncio.Future] = {}
        self._seen: dict[int, tuple[float, dict[str, Any]]] = {}
        self._changed = asyncio.Condition()

    # the driver's and the proxies' side

    async def submit(self, trial_id: str, job: dict, judged: bool = True) -> None:
        """Queues a trial for the next free lane; `judged`: each report waits for a verdict."""
        async with self._changed:
            if trial_id in self._trials and self._trials[trial_id].job == job:  # said twice
                return
            place = max((one.place for one in self._trials.values()), default=0.0) + 1
            trial = BrokeredTrial(trial_id, job, judged, place, queued_since=time.time())
            trial.epoch = trial.answered = job.get("known_epoch", 0)
            if trial_id in self._trials:
                self._journal.gone(trial_id)
            self._journal.trial(trial)
            if self._journal.closed:
                self._end(trial, "stopped")
            self._changed.notify_all()

    async def answered(self, trial_id: str) -> int:
        """How many of a trial's events its proxy need not be told: a proxy that died had passed them on."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return 0
        events = self._journal.events[trial_id]
        return sum(kind == "report" and payload["epoch"] <= trial.answered for kind, payload in events)

    async def next(self, trial_id: str, number: int) -> tuple[str, Any]:
        """Waits for a trial's event of that number, from 0: `report` (metrics), `done` (result), `failed` or
        `bad_input` (reason), or `stopped`."""
        news = self._news[trial_id]
        while True:  # it may be asked for before it was submitted: by two processes
            events = self._journal.events.get(trial_id, ())
            if len(events) > number:
                return events[number]
            forgotten = self._news.get(trial_id) is not news
            if forgotten or (self._journal.closed and trial_id not in self._trials):
                return "stopped", None
            news.clear()
            await news.wait()

    async def verdict(self, trial_id: str, epoch: int, go_on: bool) -> None:
        """Tune's answer to the report of that epoch; one that comes late answers no later report."""
        if (trial := self._trials.get(trial_id)) is None:
            return
        trial.answered, trial.stopped = max(trial.answered, epoch), trial.stopped or not go_on
        self._journal.trial(trial)
        if epoch == trial.epoch:
            self._answer(trial, go_on)

    async def reason(self, trial_id: str) -> str:
        """Why a trial failed."""
        trial = self._trials.get(trial_id)
        return trial.last_error if trial and trial.over else "its proxy died"

    async def is_over(self, trial_id: str) -> bool:
        """Whether the lanes are done with a trial."""
        trial = self._trials.get(trial_id)
        return trial is None or trial.over

    async def forget(self, trial_id: str) -> None:
        """Tune is done with a trial: a lane that is still at it is told to stop, then nothing of it is kept."""
        if trial := self._trials.get(trial_id):
            trial.forgotten = trial.stopped = True
            trial.queued = False
            self._answer(trial, False)
            if trial.over or not trial.held:
                self._gone(trial_id)
            else:
                self._journal.trial(trial)

    async def lane_left(self, lane: int) -> bool:
        """A lane's workers are gone: what they had goes to another one. Whether they had any."""
        async with self._changed:
            self._seen.pop(lane, None)
            self._journal.leaves(lane, False)
            had = await self._take_back(lane)
            self._changed.notify_all()
            return had

    async def leave(self, lane: int) -> None:
        """Tells a lane to quit: at once where it is idle, else at its trials' next reports. They go on elsewhere."""
        async with self._changed:
            self._journal.leaves(lane, True)
            self._changed.notify_all()

    async def silent(self) -> dict[str, float]:
        """For how many seconds nothing was heard of each trial that a lane has."""
        self._journal.catch_up()  # as this is asked again and again
        return {one.trial_id: time.time() - one.heard for one in self._trials.values() if one.held}

    async def hung(self, trial_id: str, why: str) -> Any:
        """Counts that a trial hangs, which is to be its end the second time, and not the death that follows; the handle
        of the worker to be killed.

        A frozen process may outlive its kill until the next look: that is the same hang.
        """
        trial = self._trials.get(trial_id)
        if trial is None or not trial.held:
            return None
        if trial.hung != trial.attempt:
            _count(trial, why, in_company=self._hangs_with_others(trial))
        trial.hung, trial.heard = trial.attempt, time.time()
        self._journal.trial(trial)
        return self._journal.handle_of(trial.worker)

    async def close(self) -> None:
        """Stops all trials at their next report, wakes all proxies, and lets idle lanes quit."""
        async with self._changed:
            self._journal.close()
            for trial in list(self._trials.values()):
                trial.stopped, trial.queued = True, False
                self._answer(trial, False)
                self._event(trial, "stopped", None)
            for news in self._news.values():
                news.set()
            self._changed.notify_all()

    async def lanes(self) -> dict[int, tuple[float, dict[str, Any]]]:
        """When each lane last asked for work (seconds ago) and its worker, as for `take`."""
        return {lane: (time.monotonic() - at, worker) for lane, (at, worker) in self._seen.items()}

    async def at_work(self) -> dict[str, int]:
        """The lane of each trial that one has."""
        return {one.trial_id: one.lane for one in self._trials.values() if one.held}

    # the lanes' side

    async def take(
        self, lane: int, worker: dict[str, Any], wait_s: float, at_work: Collection[str] = ()
    ) -> dict | str | None:
        """The lane's next job, "quit", or None after `wait_s`.

        A lane that does not name a trial of its own among those at work was restarted: that trial comes before all
        others, until it has been tried often enough. One that is `alone` goes to a lane that has no other.

        Args:
            worker: `pid` and Ray's `handle` of its rank 0, and its `ranks`: of each the `node` and `actor`, Ray's ids.
            at_work: the trials that the lane is training.
        """
        self._seen[lane] = (time.monotonic(), worker)

        def is_gone() -> bool:  # the lane left, or another process asks for it: whoever asked here is dead
            return self._seen.get(lane, (0.0, None))[1] is not worker

        async with self._changed:
            await self._take_back(lane, at_work)
            try:
                free = self._changed.wait_for(lambda: is_gone() or self._quits(lane) or self._for(lane, at_work))
                await asyncio.wait_for(free, wait_s)
            except TimeoutError:
                return None
            if is_gone():
                return None
            if self._quits(lane):
                return "quit"
            trial = self._for(lane, at_work)
            trial.queued, trial.held, trial.lane = False, True, lane
            trial.waited_s += time.time() - trial.queued_since
            trial.heard = time.time()
            trial.attempt, trial.begun = trial.attempt + 1, False
            trial.worker = self._journal.as_text(worker)
            self._journal.trial(trial)
            ticket = {"trial_id": trial.trial_id, "attempt": trial.attempt, "known_epoch": trial.epoch}
            told = {"alone": trial.alone, "met": trial.last_error, "waited_s": trial.waited_s}
            return {**trial.job, **ticket, **told}

    async def begun(self, trial_id: str, attempt: int) -> None:
        """The lane got the trial. One that died in asking for it did not, and that is no attempt."""
        if (trial := self._trials.get(trial_id)) and attempt == trial.attempt:
            trial.begun = True
            self._journal.trial(trial)

    async def waits(self, trial_id: str, attempt: int) -> None:
        """The lane waits for the object store with it, and does not hang."""
        if (trial := self._trials.get(trial_id)) and attempt == trial.attempt:
            trial.heard = time.time()
            self._journal.trial(trial)

    async def give_back(self, trial_id: str, attempt: int, alone: bool = True) -> None:
        """The lane cannot go on with it: it comes next; `alone`: since it could not be trained beside others."""
        trial = self._trials.get(trial_id)
        if trial is None or attempt != trial.attempt or not trial.held:
            return
        trial.held, trial.alone = False, trial.alone or alone
        if trial.stopped or self._journal.closed:
            self._end(trial, "stopped")
        else:
            self._queue_first(trial)
        async with self._changed:
            self._changed.notify_all()

    async def report(self, trial_id: str, attempt: int, metrics: dict) -> bool | str:
        """An epoch's metrics; answers whether to go on, once Tune has decided, or `LEAVE`."""
        trial = self._trials.get(trial_id)
        if trial is None or trial.stopped or attempt != trial.attempt:
            return False
        if metrics["epoch"] > trial.epoch:  # else it is said again, to a broker that was restarted
            trial.epoch, trial.heard = metrics["epoch"], time.time()
            trial.deaths = trial.company_deaths = trial.tries = trial.losses = 0
            trial.disks = []
            self._event(trial, "report", metrics)
            self._journal.trial(trial)
        if trial.judged and trial.answered < trial.epoch and not await self._verdict(trial):
            return False
        return LEAVE if trial.lane in self._journal.leaving and not self._journal.closed else not trial.stopped

    async def note(
        self,
        trial_id: str,
        attempt: int,
        error: str,
        hopeless: bool = False,
        disk: bool = False,
        node: str | None = None,
    ) -> None:
        """What a worker met before it went down with its process.

        Of an attempt's ranks the first is believed, as it took the others along, and before all what is hopeless.

        Args:
            hopeless: another attempt would meet it again.
            disk: it was a disk, which is no fault of the trial's.
            node: whose own disk it was, where there may be other nodes: its lanes are to leave it.
        """
        trial = self._trials.get(trial_id)
        if trial is None or attempt != trial.attempt:
            return
        if disk:
            trial.disk = attempt
        if node is not None:
            self._journal.disk(node, error)
            trial.moved = attempt
            if node not in trial.disks:
                trial.disks.append(node)
            for lane, (_, worker) in list(self._seen.items()):
                if lane == trial.lane or any(rank["node"] == node for rank in worker.get("ranks", [])):
                    await self.leave(lane)
        if not trial.hopeless and (trial.noted != attempt or hopeless):
            trial.last_error, trial.hopeless, trial.noted = error, hopeless, attempt
        self._journal.trial(trial)

    async def disks(self) -> list[tuple[str, str]]:
        """The nodes that had no room for what trials wrote, and what these met, in their order."""
        return self._journal.disks

    async def had_no_room(self, trial_id: str) -> bool:
        """Whether a trial has failed since a disk took nothing of it."""
        trial = self._trials.get(trial_id)
        return trial is not None and trial.over and trial.disk == trial.attempt

    async def finish(
        self, trial_id: str, attempt: int, error: str | None = None, result: dict | None = None, bad_input: bool = False
    ) -> None:
        """The lane is done with a trial: it ran to its end, was stopped, or failed with an error."""
        trial = self._trials.get(trial_id)
        if trial is None or attempt != trial.attempt or trial.over:
            return
        trial.held = False
        if error is not None:
            trial.last_error = error
            self._end(trial, "bad_input" if bad_input else "failed", error)
        else:
            self._end(trial, "done", result)
        async with self._changed:
            self._changed.notify_all()

    def _hangs_with_others(self, trial: BrokeredTrial) -> bool:
        """Whether other trials in its process are as silent, so that nobody knows which of them holds it up."""
        now, others = time.time(), [one for one in self._trials.values() if one.held and one.begun and one is not trial]
        return any(
            one.lane == trial.lane and (one.hung == one.attempt or now - one.heard > (now - trial.heard) / 2)
            for one in others
        )

    def _quits(self, lane: int) -> bool:
        return self._journal.closed or lane in self._journal.leaving

    def _queue(self) -> list[BrokeredTrial]:
        return sorted((one for one in self._trials.values() if one.queued), key=lambda trial: trial.place)

    def _queue_first(self, trial: BrokeredTrial) -> None:
        trial.place = min(one.place for one in self._trials.values()) - 1
        trial.queued, trial.queued_since = True, time.time()
        self._journal.trial(trial)

    def _for(self, lane: int, at_work: Collection[str]) -> BrokeredTrial | None:
        """The first trial that the lane may have now; where one was lost there that must be alone, it trains others to
        their end first."""
        queue = self._queue()
        if not at_work:
            return queue[0] if queue else None
        if any(trial.alone and trial.lane == lane for trial in queue):
            return None
        return next((trial for trial in queue if not trial.alone), None)

    async def _take_back(self, lane: int, at_work: Collection[str] = ()) -> bool:
        """Queues what a lane had and is not at any more before all others, or ends it where that is in vain; whether
        there was any."""
        held = [one for one in self._trials.values() if one.held and one.lane == lane]
        lost = sorted((one for one in held if one.trial_id not in at_work), key=lambda trial: trial.place)
        begun = sum(trial.begun for trial in lost)
        # Whose node had no room was not at fault, and neither were those beside it.
        moved = any(one.moved == one.attempt for one in lost)
        blamed = [one for one in lost if one.begun and not moved]
        asked = {one.trial_id: await asyncio.to_thread(self._why, one.worker) for one in blamed}
        lost = [one for one in lost if one.held and self._trials.get(one.trial_id) is one]  # some ended meanwhile
        for trial in reversed(lost):
            trial.held, why = False, asked.get(trial.trial_id, NO_FAULT)
            if trial.trial_id in asked and trial.hung != trial.attempt:  # else that was counted
                _count(trial, why, in_company=begun > 1)
            if trial.stopped or self._journal.closed:
                self._end(trial, "stopped")
            elif trial.whole:  # its process died before it said so
                self._end(trial, "done")
            elif trial.hopeless:
                self._end(trial, "bad_input", trial.last_error)
            elif len(trial.disks) >= MAX_DISKS:
                trial.last_error = f"{MAX_DISKS} nodes had no room for it, the last one: {trial.last_error}"
                self._end(trial, "failed", trial.last_error)
            elif trial.deaths >= MAX_DEATHS or trial.losses >= MAX_LOSSES:
                given_up = f"given up after {trial.tries} attempts: {trial.last_error}"
                trial.last_error = given_up if trial.deaths >= MAX_DEATHS else LOST
                self._end(trial, "failed", trial.last_error)
            else:
                self._queue_first(trial)
        if lost:
            self._changed.notify_all()
        return bool(lost)

    def _end(self, trial: BrokeredTrial, kind: str, payload: Any = None) -> None:
        trial.over, trial.queued = True, False
        self._event(trial, kind, payload)
        self._journal.trial(trial)
        if trial.forgotten:
            self._gone(trial.trial_id)

    def _event(self, trial: BrokeredTrial, kind: str, payload: Any) -> None:
        self._journal.event(trial.trial_id, kind, payload)
        self._news[trial.trial_id].set()

    def _gone(self, trial_id: str) -> None:
        self._journal.gone(trial_id)
        if news := self._news.pop(trial_id, None):
            news.set()  # whoever waits for more of it need not

    async def _verdict(self, trial: BrokeredTrial) -> bool:
        future = self._verdicts[trial.trial_id] = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.wait_for(future, VERDICT_WAIT_S)
        except TimeoutError:
            return not trial.stopped
        finally:
            if self._verdicts.get(trial.trial_id) is future:
                del self._verdicts[trial.trial_id]

    def _answer(self, trial: BrokeredTrial, go_on: bool) -> None:
        future = self._verdicts.get(trial.trial_id)
        if future and not future.done():
            future.set_result(go_on)


def _count(trial: BrokeredTrial, why: str | None, in_company: bool) -> None:
    """Counts a death, and for a trial that had company is more careful: the next ones are to show whose they are.

    Args:
        why: None where nobody knows, `NO_FAULT`; what is known to be its own it may meet just once more.
        in_company: others were trained in the same process.
    """
    if why == NO_FAULT:
        trial.losses += 1
        if in_company and trial.losses >= MAX_LOSSES:
            trial.losses, trial.alone = 0, True
        return
    if why and not trial.hopeless:
        trial.last_error = why
    if in_company:
        trial.company_deaths += 1
        trial.alone |= trial.company_deaths >= COMPANY_DEATHS
    else:
        trial.tries += 1
        trial.deaths += 1 if why is None else MAX_DEATHS - 1
