"""Where a trial runs: what the loop may ask of its surroundings, so that it knows neither Tune nor Train."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainables.errors import InputError
from trainables.trial_log import TrialLog

AGREE_STEPS = 20  # several workers ask each other so often whether to leave: a message takes about a millisecond


class TrialFailure(Exception):
    """The trial itself failed, on every rank alike (a loss that is not a number): the lane lives on."""


class RunContext:
    """One worker's place among the workers of a trial, and its way to report.

    Args:
        folder: the trial's folder; holds its checkpoint and its student's weights.
        report: called on rank 0 with an epoch's metrics; returns whether to go on.
        rank, world_size: as in torch.distributed; a process group stands where world_size > 1.
        device: where models live.
        control: the process group for control messages (gloo, with a time-out of its own); None takes the default.
        leaving: whether the machine of one of the trial's workers is about to go, as far as this one knows.
        shared: whether all workers see the same folder; else each has its own.

    Attributes:
        log: the trial's own; on the other ranks it keeps nothing.
        paused: the trial was left amid an epoch, in its checkpoint, to go on elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        report: Callable[[dict[str, float]], bool],
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        control: Any = None,
        leaving: Callable[[], bool] = lambda: False,
        shared: bool = True,
    ):
        self.folder, self._report, self._shared = Path(folder), report, shared
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self._control, self.leaving, self.paused = control, leaving, False
        self.log = TrialLog(self.folder if rank == 0 else None)

    def report(self, metrics: dict[str, float]) -> bool:
        """Reports one epoch; every rank calls it and gets the same answer: True to go on, False to stop."""
        return self.from_rank_0(lambda: self._report(metrics))

    def must_leave(self, step: int) -> bool:
        """Whether to pause after a step, given its number; every rank asks after each and gets the same answer."""
        if self.world_size == 1:
            return self.leaving()
        return step % AGREE_STEPS == 0 and any(self.all_ranks(self.leaving()))

    def all_ranks(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on every rank."""
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def from_rank_0(self, function: Callable[[], Any]) -> Any:
        """Runs a function on rank 0 and gives its result to all ranks; where it fails there, it fails on all.

        Bad input stays bad input on every rank, so that none of them takes it for another's death.
        """
        if self.world_size == 1:
            return function()
        box, failure = [None], None
        if self.rank == 0:
            try:
                box = [(function(), None)]
            except Exception as error:  # the other ranks wait for an answer
                told = error if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
                box, failure = [(None, told)], error
        dist.broadcast_object_list(box, src=0, group=self._control)
        value, told = box[0]
        if isinstance(told, InputError):
            raise failure or told
        if told is not None:
            raise failure or RuntimeError(f"rank 0 failed: {told}")
        return value

    def hand_round(self, path: Path) -> None:
        """Has a file that rank 0 wrote into the folder lie there on every rank."""
        if self.world_size == 1 or self._shared:
            return
        content = self.from_rank_0(path.read_bytes)
        if self.rank:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all ranks, in rank order, on rank 0; None on the others."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self._control)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elementwise sum over the ranks."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor
