"""What the adapters share: a trial's parts, built as our own loop builds them."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables import checkpoint
from trainables.acceleration import accelerate
from trainables.assets import EVAL_BATCH, Assets
from trainables.build import normalization
from trainables.config import TrialConfig
from trainables.distillation import Taught, make_taught, needs_of
from trainables.loop import build_student
from trainables.stream import TrainStream, eval_loader, train_loader
from trainables.teacher import Teacher


class Parts:
    """A trial's data, its student in training and its teacher, with the random numbers of our own loop.

    Args:
        fields: the whole configuration, as `best.json` has it.
        teacher_weights: the teacher's file; not read with the distiller `none`.
        device: where both models are; None for the CPU.

    Attributes:
        config: the configuration.
        taught: the student with its projectors and losses.
        splits: the data.

    Raises:
        InputError: the configuration does not fit the models, the data or the weights.
    """

    def __init__(self, fields: dict[str, Any], teacher_weights: str | Path | None, device: torch.device | None = None):
        device = device or torch.device("cpu")
        self.config = config = TrialConfig(**fields).on(device.type)
        weights = Path(teacher_weights) if teacher_weights else None
        self._assets = Assets(device, weights)
        self.splits = self._assets.splits(config)
        checkpoint.seed_everything(config.seed)
        student = build_student(config, len(self.splits.classes))
        self.mean, self.std = normalization(student.model)
        targets = torch.tensor(self.splits.train.targets)
        self.taught: Taught = make_taught(student, config, self.teacher, targets).to(device)
        accelerate(self.taught, config)
        checkpoint.seed_everything(config.seed)  # dropout and the like begin from here, as in our own loop

    @cache  # noqa: B019 - it lives as long as the process that trains it
    def teacher(self) -> Teacher:
        """The frozen teacher, built when it is first asked for; takes images in the student's normalisation."""
        return self._assets.teacher(self.config, self.mean, self.std, needs_of(self.config))

    def stream(self, rank: int = 0, world_size: int = 1) -> TrainStream:
        """A rank's part of the training stream, the very batches of our own loop; on the CPU."""
        options = dict(rank=rank, world_size=world_size, seed=self.config.seed, num_classes=len(self.splits.classes))
        return train_loader(self.splits.train, self.config, mean=self.mean, std=self.std, **options)

    def holdout(self, rank: int = 0, world_size: int = 1):
        """A rank's batches of the holdout."""
        return eval_loader(
            self.splits.holdout,
            self.config.img_size,
            mean=self.mean,
            std=self.std,
            batch_size=EVAL_BATCH,
            rank=rank,
            world_size=world_size,
            loader_workers=self.config.loader_workers,
        )

    def terms(self, images: Tensor, target: Tensor, index: Tensor, number: int, epoch: int, taught=None):
        """The loss of a step and its terms, as `Taught.forward` gives them, the teacher asked.

        Args:
            taught: what runs in place of `self.taught`, where a trainer has wrapped it.
        """
        answer = None
        if self.config.distiller != "none":
            with torch.no_grad():
                answer = self.teacher().to(images.device)(images)
        return (taught or self.taught)(images, target, answer, index, number, epoch)


class Epochs:
    """A stream as other trainers want their loaders: iterated once an epoch, with a length.

    Args:
        stream: as `Parts.stream` gives it.
        epoch: tells which epoch is to come, from 0.
    """

    def __init__(self, stream: TrainStream, epoch: Callable[[], int]):
        self._stream, self._epoch = stream, epoch

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self._stream.epoch(self._epoch())
