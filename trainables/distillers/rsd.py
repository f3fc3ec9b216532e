"""RSD: redundancy suppression distillation (Zhang et al., ICCV 2025, arXiv 2507.21844), on embeddings or on logits."""

from pydantic import Field

from trainables.distillers.base import STUDENT_EMBEDDING, TEACHER_EMBEDDING, Distiller, register
from trainables.fields import Range, Strict


class RSDFields(Strict):
    """RSD's own hyperparameters, the authors' defaults; they call it sensitive to the first two."""

    rsd_loss_weight: float = Field(0.1, ge=0)
    rsd_kappa: float = Field(0.01, ge=0)  # of what is off the diagonal
    rsd_expansion: int = Field(2, ge=1)  # hidden width of the student's branch over its embedding


class RSDLogitsFields(Strict):
    """The same of RSD on logits."""

    rsd_logits_loss_weight: float = Field(0.1, ge=0)
    rsd_logits_kappa: float = Field(0.01, ge=0)


@register
class RSD(Distiller):
    """The cross-correlation of student's and teacher's pooled embeddings is brought to the identity.

    Beats OFA on its own pairs in its paper, and may be added to it: `ofa+rsd`.
    """

    name = "rsd"
    title = "redundancy suppression (Zhang et al., ICCV 2025)"
    Fields = RSDFields
    ranges = {"rsd_loss_weight": Range(0.001, 1.0, log=True), "rsd_kappa": Range(0.001, 0.1, log=True)}
    weights = {"rsd": "rsd_loss_weight"}
    needs = frozenset({STUDENT_EMBEDDING, TEACHER_EMBEDDING})

    def module(self, config, shapes):
        from trainables.losses.rsd import Expander

        return Expander(shapes.student_embedding, shapes.teacher_embedding, config.rsd_expansion)

    def terms(self, config, step, module):
        from trainables.losses.rsd import rsd_loss

        embedding = step.student.embedding
        if len(embedding) == 1:  # one image correlates with nothing, and batch norm refuses it
            return {"rsd": 0.0 * embedding.float().sum()}
        return {"rsd": rsd_loss(module(embedding), step.teacher.embedding, kappa=config.rsd_kappa)}


@register
class RSDLogits(Distiller):
    """The same on the final logits: nothing is added to the student, and only the teacher's logits are needed."""

    name = "rsd_logits"
    title = "redundancy suppression on logits (Zhang et al., ICCV 2025)"
    Fields = RSDLogitsFields
    ranges = {"rsd_logits_loss_weight": Range(0.01, 3.0, log=True), "rsd_logits_kappa": Range(0.001, 0.1, log=True)}
    weights = {"rsd_logits": "rsd_logits_loss_weight"}

    def terms(self, config, step, module):
        from trainables.losses.rsd import rsd_loss

        logits = step.student.logits
        return {"rsd_logits": rsd_loss(logits, step.teacher.logits, kappa=config.rsd_logits_kappa)}
