"""The broker between Tune's proxies and the lanes: an asyncio actor that takes no CPU.

The searcher submits a trial, and the trial's proxy asks for its `next` event; a lane takes it, reports an epoch and
waits for Tune's verdict, which the study's Tune callback sends. Each try of a lane at a trial has a number, and
reports with an old one are refused, so that every epoch arrives exactly once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Collection

VERDICT_WAIT_S = 120.0  # a verdict that does not come within this counts as "go on"
MAX_DEATHS = 3  # of a process that trained just this one; then the trial has failed
COMPANY_DEATHS = 2  # of one that trained others too; then it has no company, so that it shows whose fault it is


class _Trial:
    def __init__(self, trial_id: str, job: dict, judged: bool):
        self.trial_id, self.job, self.judged = trial_id, job, judged
        self.attempt = 0
        self.begun = False  # the lane has told that it got this attempt
        self.deaths = self.company_deaths = 0
        self.lane: int | None = None  # where it was last
        self.last_error = "its worker died"
        self.stopped = self.over = self.hopeless = self.forgotten = self.alone = False
        self.epoch = 0  # the last one reported
        self.events: asyncio.Queue = asyncio.Queue()
        self.verdict: asyncio.Future | None = None


class Broker:
    """See the module; every method is a remote call."""

    def __init__(self):
        self._trials: dict[str, _Trial] = {}
        self._queue: deque[_Trial] = deque()
        self._by_lane: dict[int, list[_Trial]] = {}
        self._seen: dict[int, tuple[float, int]] = {}
        self._changed = asyncio.Condition()
        self._closed = False

    # the driver's and the proxies' side

    async def submit(self, trial_id: str, job: dict, judged: bool = True) -> None:
        """Queues a trial for the next free lane; `judged`: each report waits for a verdict."""
        async with self._changed:
            trial = self._trials[trial_id] = _Trial(trial_id, job, judged)
            if self._closed:
                self._end(trial, "stopped")
            else:
                self._queue.append(trial)
            self._changed.notify_all()

    async def next(self, trial_id: str) -> tuple[str, object]:
        """Waits for a trial's next event: `report` (metrics), `done` (result), `failed` (reason) or `stopped`."""
        async with self._changed:  # it may be asked for before it was submitted: by two processes
            await self._changed.wait_for(lambda: trial_id in self._trials or self._closed)
        trial = self._trials.get(trial_id)
        return await trial.events.get() if trial else ("stopped", None)

    async def verdict(self, trial_id: str, epoch: int, go_on: bool) -> None:
        """Tune's answer to the report of that epoch; one that comes late answers no later report."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        if not go_on:
            trial.stopped = True
        if epoch == trial.epoch:
            self._answer(trial, go_on)

    async def reason(self, trial_id: str) -> str:
        """Why a trial failed."""
        trial = self._trials.get(trial_id)
        return trial.last_error if trial else "its proxy died"

    async def forget(self, trial_id: str) -> None:
        """Tune is done with a trial: a lane that is still at it is told to stop, then nothing of it is kept."""
        if trial := self._trials.get(trial_id):
            trial.forgotten = trial.stopped = True
            self._answer(trial, False)
            if trial in self._queue:
                self._queue.remove(trial)
            if trial.over or not any(trial in held for held in self._by_lane.values()):
                del self._trials[trial_id]

    async def lane_lost(self, lane: int) -> None:
        """A lane is gone for good: its trials go to another one."""
        async with self._changed:
            self._take_back(lane)

    async def close(self) -> None:
        """Stops all trials at their next report, wakes all proxies, and lets idle lanes quit."""
        async with self._changed:
            self._closed = True
            for trial in list(self._trials.values()):
                trial.stopped = True
                self._answer(trial, False)
                trial.events.put_nowait(("stopped", None))
            self._queue.clear()
            self._changed.notify_all()

    async def lanes(self) -> dict[int, tuple[float, int]]:
        """When each lane last asked for work (seconds ago) and the pid of its rank 0."""
        return {lane: (time.monotonic() - at, pid) for lane, (at, pid) in self._seen.items()}

    # the lanes' side

    async def take(self, lane: int, pid: int, wait_s: float, at_work: Collection[str] = ()) -> dict | str | None:
        """The lane's next job, "quit", or None after `wait_s`.

        A lane that does not name a trial of its own among those at work was restarted: that trial comes before all
        others, until it has been tried often enough. One that is `alone` goes to a lane that has no other.

        Args:
            at_work: the trials that the lane is training.
        """
        self._seen[lane] = (time.monotonic(), pid)
        async with self._changed:
            self._take_back(lane, at_work)
            try:
                free = self._changed.wait_for(lambda: self._closed or self._for(lane, at_work))
                await asyncio.wait_for(free, wait_s)
            except TimeoutError:
                return None
            if self._closed:
                return "quit"
            trial = self._for(lane, at_work)
            self._queue.remove(trial)
            trial.attempt, trial.begun = trial.attempt + 1, False
            self._by_lane[lane].append(trial)
            ticket = {"trial_id": trial.trial_id, "attempt": trial.attempt}
            return {**trial.job, **ticket, "alone": trial.alone, "met": trial.last_error}

    async def begun(self, trial_id: str, attempt: int) -> None:
        """The lane got the trial. One that died in asking for it did not, and that is no attempt."""
        if (trial := self._trials.get(trial_id)) and attempt == trial.attempt:
            trial.begun = True

    async def give_back(self, trial_id: str, attempt: int) -> None:
        """The lane could not train it beside others: it comes next, alone."""
        trial = self._trials.get(trial_id)
        if trial is None or attempt != trial.attempt:
            return
        async with self._changed:
            self._release(trial)
            if trial.stopped or self._closed:
                self._end(trial, "stopped")
            else:
                trial.alone = True
                self._queue.appendleft(trial)
                self._changed.notify_all()

    async def report(self, trial_id: str, attempt: int, metrics: dict) -> bool:
        """An epoch's metrics; answers whether to go on, once Tune has decided."""
        trial = self._trials.get(trial_id)
        if trial is None or trial.stopped or attempt != trial.attempt:
            return False
        trial.job["known_epoch"] = trial.epoch = metrics["epoch"]
        if trial.judged:
            trial.verdict = asyncio.get_running_loop().create_future()
        trial.events.put_nowait(("report", metrics))
        if not trial.judged:
            return True
        try:
            return await asyncio.wait_for(trial.verdict, VERDICT_WAIT_S)
        except TimeoutError:
            return not trial.stopped

    async def note(self, trial_id: str, attempt: int, error: str, hopeless: bool = False) -> None:
        """What a worker met before it went down with its process; `hopeless`: another attempt would meet it again."""
        if trial := self._trials.get(trial_id):
            trial.last_error, trial.hopeless = error, hopeless

    async def finish(
        self, trial_id: str, attempt: int, error: str | None = None, result: dict | None = None, bad_input: bool = False
    ) -> None:
        """The lane is done with a trial: it ran to its end, was stopped, or failed with an error."""
        trial = self._trials.get(trial_id)
        if trial is None or attempt != trial.attempt:
            return
        self._release(trial)
        if error is not None:
            trial.last_error = error
            self._end(trial, "bad_input" if bad_input else "failed", error)
        else:
            self._end(trial, "done", result)

    def _for(self, lane: int, at_work: Collection[str]) -> _Trial | None:
        """The first trial that the lane may have now; where one was lost there that must be alone, it trains others to
        their end first."""
        if not at_work:
            return self._queue[0] if self._queue else None
        if any(trial.alone and trial.lane == lane for trial in self._queue):
            return None
        return next((trial for trial in self._queue if not trial.alone), None)

    def _take_back(self, lane: int, at_work: Collection[str] = ()) -> None:
        """Queues what a lane had and is not at any more before all others, or ends it where that is in vain."""
        held = self._by_lane.setdefault(lane, [])
        lost = [trial for trial in held if trial.trial_id not in at_work]
        begun = sum(trial.begun for trial in lost)
        for trial in reversed(lost):
            held.remove(trial)
            trial.deaths += trial.begun and begun == 1
            trial.company_deaths += trial.begun and begun > 1
            trial.alone |= trial.company_deaths >= COMPANY_DEATHS
            trial.lane = lane
            if trial.stopped or self._closed:
                self._end(trial, "stopped")
            elif trial.hopeless:
                self._end(trial, "bad_input", trial.last_error)
            elif trial.deaths >= MAX_DEATHS:
                trial.last_error = f"given up after {trial.attempt} attempts: {trial.last_error}"
                self._end(trial, "failed", trial.last_error)
            else:
                self._queue.appendleft(trial)
        if lost:
            self._changed.notify_all()

    def _release(self, trial: _Trial) -> None:
        for lane, held in self._by_lane.items():
            if trial in held:
                held.remove(trial)
                trial.lane = lane

    def _end(self, trial: _Trial, kind: str, payload: object = None) -> None:
        trial.over = True
        trial.events.put_nowait((kind, payload))
        if trial.forgotten:
            self._trials.pop(trial.trial_id, None)

    @staticmethod
    def _answer(trial: _Trial, go_on: bool) -> None:
        if trial.verdict and not trial.verdict.done():
            trial.verdict.set_result(go_on)
