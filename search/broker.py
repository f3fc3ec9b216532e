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
MAX_ATTEMPTS = 3


class _Trial:
    def __init__(self, trial_id: str, job: dict, judged: bool):
        self.trial_id, self.job, self.judged = trial_id, job, judged
        self.attempt = 0
        self.last_error = "its worker died"
        self.stopped = self.over = self.hopeless = self.forgotten = False
        self.epoch = 0  # the last one reported
        self.events: asyncio.Queue = asyncio.Queue()
        self.verdict: asyncio.Future | None = None

    @property
    def alone(self) -> bool:
        """Whether its next attempt is the last."""
        return self.attempt == MAX_ATTEMPTS - 1


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
        others, until it has been tried often enough. The last time it goes to a lane that has no other, marked as
        `alone`, so that of packed trials the one that ends the process is told from its company.

        Args:
            at_work: the trials that the lane is training.
        """
        self._seen[lane] = (time.monotonic(), pid)
        async with self._changed:
            self._take_back(lane, at_work)
            try:
                free = self._changed.wait_for(
                    lambda: self._closed or (self._queue and not (self._queue[0].alone and at_work))
                )
                await asyncio.wait_for(free, wait_s)
            except TimeoutError:
                return None
            if self._closed:
                return "quit"
            trial = self._queue.popleft()
            alone = trial.alone
            trial.attempt += 1
            self._by_lane[lane].append(trial)
            return {**trial.job, "trial_id": trial.trial_id, "attempt": trial.attempt, "alone": alone}

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
        for held in self._by_lane.values():
            if trial in held:
                held.remove(trial)
        if error is not None:
            trial.last_error = error
            self._end(trial, "bad_input" if bad_input else "failed", error)
        else:
            self._end(trial, "done", result)

    def _take_back(self, lane: int, at_work: Collection[str] = ()) -> None:
        """Queues what a lane had and is not at any more before all others, or ends it where that is in vain."""
        held = self._by_lane.setdefault(lane, [])
        lost = [trial for trial in held if trial.trial_id not in at_work]
        for trial in reversed(lost):
            held.remove(trial)
            if trial.stopped or self._closed:
                self._end(trial, "stopped")
            elif trial.hopeless:
                self._end(trial, "bad_input", trial.last_error)
            elif trial.attempt >= MAX_ATTEMPTS:
                trial.last_error = f"given up after {MAX_ATTEMPTS} attempts: {trial.last_error}"
                self._end(trial, "failed", trial.last_error)
            else:
                self._queue.appendleft(trial)
        self._changed.notify_all()

    def _end(self, trial: _Trial, kind: str, payload: object = None) -> None:
        trial.over = True
        trial.events.put_nowait((kind, payload))
        if trial.forgotten:
            self._trials.pop(trial.trial_id, None)

    @staticmethod
    def _answer(trial: _Trial, go_on: bool) -> None:
        if trial.verdict and not trial.verdict.done():
            trial.verdict.set_result(go_on)
