"""CRD: contrastive representation distillation (Tian et al., ICLR 2020, arXiv 1910.10699)."""

from pydantic import Field

from trainables.distillers.base import STUDENT_EMBEDDING, TEACHER_EMBEDDING, Distiller, register
from trainables.fields import Range, Strict


class CRDFields(Strict):
    """CRD's own hyperparameters, those of the official OFA-KD code (CRD's authors weigh it by 0.8)."""

    crd_loss_weight: float = Field(1.0, ge=0)
    crd_dim: int = Field(128, ge=1)  # width that both embeddings are brought to; the bank holds 2 of them an image
    crd_negatives: int = Field(16384, ge=1)  # images an anchor is contrasted with
    crd_temperature: float = Field(0.07, gt=0.01)
    crd_momentum: float = Field(0.5, ge=0, lt=1)  # the bank's old share in an update


@register
class CRD(Distiller):
    """An image's embedding must be nearer to the teacher's of the same image than to those of other classes.

    Made for whole images: a mixed one has the place of one image in the bank, so that mixup and cutmix harm it.
    """

    name = "crd"
    title = "contrastive representation distillation (Tian et al., ICLR 2020)"
    Fields = CRDFields
    ranges = {"crd_loss_weight": Range(0.02, 2.0, log=True), "crd_temperature": Range(0.05, 0.2, log=True)}
    weights = {"crd": "crd_loss_weight"}
    needs = frozenset({STUDENT_EMBEDDING, TEACHER_EMBEDDING})

    def module(self, config, shapes):
        from trainables.losses.crd import Contrast

        return Contrast(
            shapes.student_embedding,
            shapes.teacher_embedding,
            shapes.classes,
            dim=config.crd_dim,
            negatives=config.crd_negatives,
            temperature=config.crd_temperature,
            momentum=config.crd_momentum,
            rank=shapes.rank,
            world_size=shapes.world_size,
        )

    def replays(self, config):
        return False  # the first step sets the scales, and a step's number draws the negatives

    def terms(self, config, step, module):
        sides = step.student.embedding, step.teacher.embedding
        return {"crd": module(*sides, step.index, step.classes(), step.number)}
