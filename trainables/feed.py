"""What trials read, step by step: the stream's batches, and the teacher's answers to them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from trainables.acceleration import precision
from trainables.assets import Assets
from trainables.config import Distillation, StudentFields, TrialConfig
from trainables.context import RunContext
from trainables.distillation import needs_of
from trainables.distillers.base import TEACHER_EMBEDDING, TEACHER_FEATURES, TeacherOutput
from trainables.stream import train_loader
from trainables.teacher import Teacher

# Fields that change nothing of what a trial reads. All others keep trials from sharing a feed, new ones too.
NOT_FED = (set(Distillation.model_fields) | set(StudentFields.model_fields)) | {
    "opt", "lr", "momentum", "weight_decay", "projector_lr_scale", "projector_weight_decay_scale", "sched", "min_lr",
    "warmup_lr", "warmup_epochs", "decay_epochs", "decay_rate", "sched_restarts", "clip_grad", "bce_loss", "drop",
    "drop_path", "model_ema", "model_ema_decay", "torchcompile", "opt_fused", "cuda_graph", "objective", "metrics",
    "system_metrics",
}  # fmt: skip


class Batch(NamedTuple):
    """A step's: as `Taught.forward` takes it."""

    images: Tensor
    target: Tensor
    teacher: TeacherOutput | None
    index: Tensor

    def tensors(self) -> list[Tensor]:
        """All there are."""
        return [self.images, self.target, self.index, *(self.teacher.tensors() if self.teacher else [])]


class Feed:
    """The batches of a trial's epochs, and the teacher's answers, from the store where they are kept.

    Args:
        config: the trial's, with the device's defaults filled in.
        assets: the data and the teacher.
        context: the worker's place among the trial's.
        mean, std: of the student's normalisation, three values between 0 and 1 each.
        teacher: gives the teacher; not called where all answers are read.
        embedding: the width of the teacher's embedding, where a distiller asks for it.

    Attributes:
        key: what decides all that is read: where it is equal, trials may read one feed together.

    Raises:
        InputError: as `train_loader` and `Assets.answers`.
    """

    def __init__(
        self,
        config: TrialConfig,
        assets: Assets,
        context: RunContext,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        teacher: Callable[[], Teacher],
        embedding: int | None,
    ):
        splits, needs = assets.splits(config), needs_of(config)
        self._config, self._device, self._teacher = config, context.device, teacher
        self._taught = config.distiller != "none"
        self._stream = train_loader(
            splits.train,
            config,
            mean=mean,
            std=std,
            rank=context.rank,
            world_size=context.world_size,
            seed=config.seed,
            num_classes=len(splits.classes),
            device=context.device,
        )
        self._answers = None
        if self._taught:
            self._answers = assets.answers(config, mean, std, needs, teacher, embedding, self._stream, context)
        asked = sorted(needs & {TEACHER_EMBEDDING, TEACHER_FEATURES}) if self._taught else None
        self.key = str((config.model_dump(exclude=NOT_FED), tuple(mean), tuple(std), asked))

    def __len__(self) -> int:
        """Steps an epoch."""
        return len(self._stream)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, which counts from 0, on the device, from a step on."""
        if self._answers:
            self._answers.epoch(epoch)
        for place, (images, target, index) in enumerate(self._stream.epoch(epoch, first), first):
            with precision(self._config, self._device):
                answer = self._ask(images, place)
            yield Batch(images, target, answer, index)

    def figures(self) -> dict[str, float]:
        """Of the epoch's answers, as `Answers.figures`; empty where none are kept."""
        return self._answers.figures() if self._answers else {}

    def close(self) -> None:
        """Ends the loader's processes, and waits for what is being stored."""
        self._stream.close()
        if self._answers:
            self._answers.close()

    def _ask(self, images: Tensor, place: int) -> TeacherOutput | None:
        if not self._taught:
            return None
        return self._answers(images, place) if self._answers else self._teacher()(images)
