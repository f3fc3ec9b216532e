"""A training step's losses: a student, what its distillers add to it, and the weighted sum."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from trainables.config import TrialConfig
from trainables.distillers import distillers_of
from trainables.distillers.base import (
    STAGE_LOGITS,
    STUDENT_EMBEDDING,
    STUDENT_FEATURES,
    Shapes,
    Step,
    StudentOutput,
    TeacherOutput,
)
from trainables.losses import full_precision, standardized
from trainables.losses.crd import Contrast
from trainables.losses.temperature import CurriculumTemperature
from trainables.student import Student
from trainables.teacher import Teacher
from trainables.trace import dry_run


class Taught(nn.Module):
    """A student in training: itself, its projectors, its distillers' own modules, and the losses of a step.

    Everything with a gradient goes through `forward`, so that DistributedDataParallel sees it whole. The student comes
    ready built; what is drawn here does not change its initial weights.

    Args:
        student: the student with its projectors.
        config: the distiller's fields and the recipe's `smoothing` and `bce_loss`, which shape the cross-entropy.
        shapes: what the distillers' modules are built for.

    Attributes:
        extras: the distillers' own modules by name, and `temperature`, where that is learned; training only.
        teacher_embedding: the width of the teacher's embedding, where it is needed.
    """

    def __init__(self, student: Student, config: TrialConfig, shapes: Shapes):
        super().__init__()
        self.student, self.config, self.teacher_embedding = student, config, shapes.teacher_embedding
        modules = {distiller.name: distiller.module(config, shapes) for distiller in distillers_of(config.distiller)}
        if config.curriculum_temperature:
            modules["temperature"] = CurriculumTemperature(
                *config.curriculum_range, config.curriculum_epochs, config.curriculum_strength
            )
        self.extras = nn.ModuleDict({name: module for name, module in modules.items() if module is not None})

    def forward(
        self,
        images: Tensor,
        target: Tensor,
        teacher: TeacherOutput | None,
        index: Tensor | None = None,
        number: int = 0,
        epoch: int = 0,
    ) -> dict[str, Tensor]:
        """The loss of a step and its terms, as `loss_terms` gives them.

        Args:
            images: [B, 3, S, S].
            target: [B] class indices or [B, C] mixed labels.
            teacher: what the teacher says of the images, None for the distiller "none".
            index: [B], the images' places in the training split.
            number: steps made before.
            epoch: epochs finished before.
        """
        learned = "temperature" in self.extras
        temperature = self.extras["temperature"](epoch) if learned else self.config.temperature
        step = Step(self.student(images), teacher, target, index, temperature, number, epoch)
        terms = loss_terms(self.config, step, dict(self.extras.items()))
        return {**terms, "temperature": temperature.detach()} if learned else terms

    def shards(self) -> dict[str, Tensor]:
        """What each worker holds a part of, for a checkpoint; `state_dict` has the rest."""
        return {name: module.shard() for name, module in self.extras.items() if isinstance(module, Contrast)}

    def load_shards(self, shards: list[dict[str, Tensor]]) -> None:
        """Takes `shards` of all workers that wrote the checkpoint, in rank order."""
        for name in self.shards():
            self.extras[name].load_shards([shard[name] for shard in shards])


def needs_of(config: TrialConfig) -> set[str]:
    """What the models have to give besides their logits, for a trial's distillers (of `base.NEEDS`)."""
    needs = set()
    for distiller in distillers_of(config.distiller):
        weighed = any(getattr(config, distiller.weights[term]) for term in distiller.stage_terms)
        needs |= distiller.needs - (set() if weighed else {STAGE_LOGITS})  # no projectors that nothing asks for
    return needs


def make_taught(
    student: Student,
    config: TrialConfig,
    teacher: Callable[[], Teacher],
    classes: Tensor,
    rank: int = 0,
    world_size: int = 1,
) -> Taught:
    """A student in training, its distillers' modules built for what both models really give.

    Args:
        student: as `build_student` gives it.
        teacher: gives the teacher, as `Assets.teacher` does; asked where modules are built for its shapes.
        classes: [N] int64, the class of each image of the training split.
        rank, world_size: as in torch.distributed.
    """
    needs, ours, theirs = needs_of(config), None, None
    if needs & {STUDENT_EMBEDDING, STUDENT_FEATURES}:
        with dry_run(student) as device:
            ours = student(torch.zeros(2, 3, config.img_size, config.img_size, device=device))
        asked = teacher()
        with dry_run(asked.model) as device:
            theirs = asked(torch.zeros(2, 3, config.img_size, config.img_size, device=device))
    return Taught(
        student,
        config,
        Shapes(
            student_embedding=_width(ours),
            teacher_embedding=_width(theirs),
            student_features=_maps(ours),
            teacher_features=_maps(theirs),
            classes=classes,
            rank=rank,
            world_size=world_size,
        ),
    )


def loss_terms(config: TrialConfig, step: Step, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The loss of a step and the terms it is made of.

    `normalize_loss_weights` divides the weights by the sum of those whose terms there are.

    Args:
        config: as for `Taught`.
        step: both models' outputs and the labels.
        modules: the distillers' own modules by name.

    Returns:
        Scalars, float32: `gt`, `kd`, `ofa` and each further term unweighted (`kd` and `ofa` zero where there are none),
        and `loss`, their weighted sum.
    """
    terms = {"gt": ground_truth_loss(step.student.logits, step.target, config.smoothing, config.bce_loss)}
    weights = {"gt": config.gt_loss_weight}
    compared = _standardized(step) if config.logit_standardization else step
    for distiller in distillers_of(config.distiller):
        seen = compared if "logit_standardization" in distiller.common else step
        added = distiller.terms(config, seen, modules.get(distiller.name))
        terms |= added
        weights |= {term: getattr(config, distiller.weights[term]) for term in added}
    scale = sum(weights.values()) if config.normalize_loss_weights else 1.0
    loss = sum(weight / scale * terms[name] for name, weight in weights.items())
    zero = torch.zeros((), device=loss.device)
    return {"loss": loss, "kd": zero, "ofa": zero, **terms}


def ground_truth_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0, bce_loss: bool = False) -> Tensor:
    """Cross-entropy with the labels, as timm's train.py has it.

    Args:
        logits: [B, C], any floating type.
        target: [B] class indices, or [B, C] mixed labels, which Mixup has smoothed already.
        smoothing: label smoothing of class indices.
        bce_loss: binary cross-entropy of every class instead.

    Returns:
        The batch mean, a scalar float32.
    """
    with full_precision(logits):
        if bce_loss:
            return BinaryCrossEntropy(smoothing=smoothing)(logits.float(), target)
        if target.ndim == 2:
            return F.cross_entropy(logits.float(), target.float())
        return F.cross_entropy(logits.float(), target, label_smoothing=smoothing)


def _width(output: StudentOutput | TeacherOutput | None) -> int | None:
    return output.embedding.shape[1] if output and output.embedding is not None else None


def _maps(output: StudentOutput | TeacherOutput | None) -> dict[int, tuple[int, ...]]:
    return {stage: tuple(feature.shape[1:]) for stage, feature in output.features.items()} if output else {}


def _standardized(step: Step) -> Step:
    student, teacher = step.student, step.teacher
    stages = {stage: standardized(logits) for stage, logits in student.stage_logits.items()}
    student = student._replace(logits=standardized(student.logits), stage_logits=stages)
    return replace(step, student=student, teacher=teacher._replace(logits=standardized(teacher.logits)))
