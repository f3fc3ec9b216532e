"""Trials packed into one process: side by side, on the same batches and the same answers of the teacher.

For students so small that one alone leaves a GPU idle, or loading takes longer than a step. Each trial's steps go to a
CUDA stream of its own, as graphs where they are replayed, so that those of several fill the GPU together
(`python tests/benchmarks/run.py packing`). What a trial computes does not depend on its company.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch

from trainables.assets import Assets
from trainables.config import TrialConfig
from trainables.context import RunContext
from trainables.feed import Batch
from trainables.loop import Run
from trainables.randomness import RandomNumbers

WAIT_S = 1.0


@dataclass(frozen=True)
class Packed:
    """A trial to be packed.

    Args:
        config, known_epoch, test: as for `run_trial`.
        context: of a single worker; its report is called in a thread, so that a verdict keeps nobody waiting.
        ended: told once, in the thread that drives the pack, with what went wrong, or None.
    """

    config: TrialConfig
    context: RunContext
    known_epoch: int
    test: bool
    ended: Callable[[Exception | None], None]


class Pack:
    """Trains trials side by side; those that begin together and read the same do so in step, from one feed.

    Whoever owns it calls `advance` as long as there are any. An error ends the trial that met it; an error in reading
    ends all that read it.

    Args:
        assets: the data and the teacher, which all share.
        size: how many there may be at a time.
    """

    def __init__(self, assets: Assets, size: int):
        self._assets, self._cohorts = assets, []
        self._reports = ThreadPoolExecutor(size, thread_name_prefix="report")

    def __len__(self) -> int:
        """How many trials are in it."""
        return sum(len(cohort.members) for cohort in self._cohorts)

    def begin(self, trials: list[Packed]) -> None:
        """Builds trials, or has them go on from their checkpoints, and groups those that will read the same."""
        alike: dict[tuple[str, int, int], list[_Member]] = {}
        for trial in trials:
            member = _Member(trial)
            with member.working():
                member.build(self._assets, self._reports)
            if member.run:
                place = member.run.feed.key, member.run.epoch, member.run.steps
                alike.setdefault(place, []).append(member)
        self._cohorts += [_Cohort(members, self._reports) for members in alike.values()]

    def advance(self) -> None:
        """Makes one step of every trial that can; waits a moment where all await their verdicts."""
        for cohort in self._cohorts:
            cohort.advance()
        self._cohorts = [cohort for cohort in self._cohorts if cohort.members]
        verdicts = [cohort.verdicts for cohort in self._cohorts]
        if verdicts and all(verdicts):
            wait(chain.from_iterable(verdicts), timeout=WAIT_S, return_when=FIRST_COMPLETED)


class _Member:
    """A trial in a pack, with random numbers and, on a GPU, a stream of its own; its run is None once it has ended."""

    def __init__(self, trial: Packed):
        self.trial, self.run, self.verdict = trial, None, None
        self._device = trial.context.device
        self._random = RandomNumbers(self._device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._changes_images: bool | None = None  # known from its first step on

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within this its own random numbers are drawn and its own stream is used; an error ends it."""
        try:
            # Without a stream, that of the device stays.
            with self.trial.context.log.turn(), self._random(), torch.cuda.stream(self._stream):
                yield
        except Exception as error:
            self.leave(error)

    def build(self, assets: Assets, reports: ThreadPoolExecutor) -> None:
        trial = self.trial
        self.run = Run(trial.config, assets, trial.context, trial.test)
        if self._stream:
            torch.cuda.default_stream(self._device).wait_stream(self._stream)  # assets, which others will use
        if unreported := self.run.unreported(trial.known_epoch):
            self.verdict = reports.submit(lambda: all(map(trial.context.report, unreported)))
        elif self.run.whole:
            self.run.feed.close()
            self._complete()

    def train(self, batch: Batch) -> None:
        """Makes a step, on a GPU once the batch is there."""
        if self._stream:
            self._stream.wait_stream(torch.cuda.default_stream(self._device))
            for tensor in batch.tensors():
                tensor.record_stream(self._stream)  # else its memory would be taken while it is still read
        if self._changes_images is not False:
            batch = batch._replace(images=batch.images.clone())
        before = batch.images._version  # torch counts changes in place
        self.run.train(batch)
        if self._changes_images is None:
            self._changes_images = batch.images._version != before

    def judged(self, go_on: bool) -> None:
        """What was said of its last epoch."""
        self.verdict = None
        if not go_on:
            self.leave()
        elif self.run.whole:
            self._complete()

    def leave(self, error: Exception | None = None) -> None:
        """It makes no further step."""
        run, self.run, self.verdict = self.run, None, None
        if run:
            run.close()
        self.trial.context.log.end(error or run.outcome)
        self.trial.ended(error)

    def _complete(self) -> None:
        self.run.complete()
        self.leave()


class _Cohort:
    """Trials that read the same, in step."""

    def __init__(self, members: list[_Member], reports: ThreadPoolExecutor):
        self.members, self._reports = members, reports
        self._feed, *others = (member.run.feed for member in members)
        for feed in others:
            feed.close()
        for member in members:
            member.run.feed = self._feed
        if not self.verdicts:
            self._begin()

    @property
    def verdicts(self) -> list[Future]:
        """Those that are awaited before the next epoch begins."""
        return [member.verdict for member in self.members if member.verdict]

    def advance(self) -> None:
        """Makes a step of all, or judges all at an epoch's end, or takes the verdicts that are there."""
        if self.verdicts:
            answered = [member for member in self.members if member.verdict and member.verdict.done()]
            self._each(answered, lambda member: member.judged(member.verdict.result()))
            if self.members and not self.verdicts:
                self._begin()
        elif batch := self._read():
            self._each(self.members, lambda member: member.train(batch))
        else:
            self._each(self.members, self._judge)
        if not self.members:
            self._feed.close()

    def _begin(self) -> None:
        first = self.members[0].run
        self._batches = self._feed.epoch(first.epoch, first.steps)
        self._each(self.members, lambda member: member.run.begin_epoch())

    def _read(self) -> Batch | None:
        """The next batch, None at the epoch's end; an error ends all."""
        try:
            return next(self._batches, None)
        except Exception as error:
            for member in self.members:
                member.leave(error)
            self.members = []
            return None

    def _judge(self, member: _Member) -> None:
        metrics = member.run.end_epoch()
        member.verdict = self._reports.submit(member.trial.context.report, metrics)

    def _each(self, members: list[_Member], work: Callable[[_Member], None]) -> None:
        for member in members:
            with member.working():
                work(member)
        self.members = [member for member in self.members if member.run]
