"""What a distiller is: its hyperparameters, their ranges, what it looks at, and its losses. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from trainables.fields import Range, Strict

if TYPE_CHECKING:  # spaces import the declarations, and must stay light
    import torch
    from torch import Tensor

    from trainables.config import TrialConfig

# What the training loop computes for a distiller that asks for it, besides both models' logits
STAGE_LOGITS = "stage_logits"  # each chosen stage's logits, through a projector
STUDENT_EMBEDDING = "student_embedding"  # the pooled feature before the classifier
TEACHER_EMBEDDING = "teacher_embedding"
STUDENT_FEATURES = "student_features"  # each chosen stage's feature map
TEACHER_FEATURES = "teacher_features"
NEEDS = {STAGE_LOGITS, STUDENT_EMBEDDING, TEACHER_EMBEDDING, STUDENT_FEATURES, TEACHER_FEATURES}

COMMON = {"temperature", "logit_standardization", "curriculum_temperature"}  # fields of several distillers

DISTILLERS: dict[str, Distiller] = {}


class StudentOutput(NamedTuple):
    """What a student's pass gives; only what was asked for is there."""

    logits: Tensor  # [B, C]
    stage_logits: dict[int, Tensor] = {}  # stage to [B, C]
    embedding: Tensor | None = None  # [B, D]
    features: dict[int, Tensor] = {}  # stage to [B, C, H, W]


class TeacherOutput(NamedTuple):
    """What the frozen teacher's pass gives; only what was asked for is there. Nothing has a gradient."""

    logits: Tensor  # [B, C]
    embedding: Tensor | None = None  # [B, D]
    features: dict[int, Tensor] = {}  # stage to [B, C, H, W]

    def tensors(self) -> list[Tensor]:
        """All there are, always in the same order."""
        return [self.logits, *([] if self.embedding is None else [self.embedding]), *self.features.values()]

    def of(self, tensors: list[Tensor]) -> TeacherOutput:
        """Others, as `tensors` gives them, in place of one's own."""
        rest = iter(tensors)
        logits, embedding = next(rest), None if self.embedding is None else next(rest)
        return TeacherOutput(logits, embedding, dict(zip(self.features, rest, strict=True)))


@dataclass(frozen=True)
class Step:
    """One training step, as a distiller sees it.

    Attributes:
        target: [B] class indices, or [B, C] mixed labels.
        index: [B] int64, each image's place in the training split.
        temperature: the configuration's, or the learned one, a scalar tensor with gradient.
        number: how many steps were made before, the same on all workers.
        epoch: how many epochs were finished before.
    """

    student: StudentOutput
    teacher: TeacherOutput | None
    target: Tensor
    index: Tensor | None = None
    temperature: float | Tensor = 1.0
    number: int = 0
    epoch: int = 0

    def classes(self) -> Tensor:
        """[B] class indices; of mixed labels the dominant class (the lowest index among equals)."""
        return self.target if self.target.ndim == 1 else self.target.argmax(dim=1)


@dataclass(frozen=True)
class Shapes:
    """What a distiller's own modules are built for.

    Attributes:
        student_embedding, teacher_embedding: widths, where they are needed.
        student_features, teacher_features: stage to (channels, height, width), where they are needed.
        classes: [N] int64, the class of each image of the training split.
        rank, world_size: as in torch.distributed; for what is shared out over the workers.
    """

    student_embedding: int | None
    teacher_embedding: int | None
    student_features: dict[int, tuple[int, ...]]
    teacher_features: dict[int, tuple[int, ...]]
    classes: Tensor
    rank: int = 0
    world_size: int = 1


class Distiller(ABC):
    """A way to learn from the teacher, declared whole: one subclass a file, entered by `register`.

    Attributes:
        name: as `distiller=NAME`, and as the prefix of its fields.
        title: the method and its source.
        Fields: its hyperparameters with defaults and bounds; they become fields of every trial's configuration.
        ranges: by field, its own or of `COMMON` or a weight, where a search looks for it by default.
        weights: by term of the loss, the field that weighs it.
        needs: of `NEEDS`.
        common: which of `COMMON` it obeys.
        stage_terms: which of its terms there are only with stages.
        on_logits: whether it compares final logits, of which a combination has one.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Fields: ClassVar[type[Strict]] = Strict
    ranges: ClassVar[dict[str, Range]] = {}
    weights: ClassVar[dict[str, str]] = {}
    needs: ClassVar[frozenset[str]] = frozenset()
    common: ClassVar[frozenset[str]] = frozenset()
    stage_terms: ClassVar[frozenset[str]] = frozenset()
    on_logits: ClassVar[bool] = False

    def module(self, config: TrialConfig, shapes: Shapes) -> torch.nn.Module | None:
        """Its own trained parameters and buffers, for training only; None where it has none."""
        return None

    def replays(self, config: TrialConfig) -> bool:
        """Whether its terms are made of the same operations on the device in each step, so that a captured one may
        stand for all: not so where it reads a step's number or epoch, or the value of a tensor."""
        return True

    @abstractmethod
    def terms(self, config: TrialConfig, step: Step, module: torch.nn.Module | None) -> dict[str, Tensor]:
        """Its terms of the loss, unweighted: batch means, scalars, float32, finite at any finite logits.

        A term of stages is left out where none is chosen.
        """

    def hyperparameters(self) -> set[str]:
        """All fields that it reads: its own, its weights and the common ones."""
        return {*self.Fields.model_fields, *self.weights.values(), *self.common}


def register(distiller: type[Distiller]) -> type[Distiller]:
    """Enters a distiller under its name.

    Raises:
        ValueError: the name is taken, or the declaration asks for what there is not.
    """
    if distiller.name in DISTILLERS:
        raise ValueError(f"there is a distiller '{distiller.name}' already")
    if unknown := (distiller.needs - NEEDS) | (distiller.common - COMMON):
        raise ValueError(f"distiller '{distiller.name}' declares {', '.join(sorted(unknown))}, which there is not")
    DISTILLERS[distiller.name] = distiller()
    return distiller
