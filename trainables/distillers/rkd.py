"""RKD: relational knowledge distillation (Park et al., CVPR 2019, arXiv 1904.05068)."""

from pydantic import Field

from trainables.distillers.base import STUDENT_EMBEDDING, TEACHER_EMBEDDING, Distiller, register
from trainables.fields import Range, Strict


class RKDFields(Strict):
    """RKD's own hyperparameters, the authors' for classification."""

    rkd_loss_weight: float = Field(1.0, ge=0)
    rkd_distance_weight: float = Field(25.0, ge=0)
    rkd_angle_weight: float = Field(50.0, ge=0)


@register
class RKD(Distiller):
    """Distances and angles among the images of a batch, on the pooled embeddings."""

    name = "rkd"
    title = "relational KD (Park et al., CVPR 2019)"
    Fields = RKDFields
    ranges = {"rkd_loss_weight": Range(0.03, 3.0, log=True), "rkd_angle_weight": Range(10.0, 200.0, log=True)}
    weights = {"rkd": "rkd_loss_weight"}
    needs = frozenset({STUDENT_EMBEDDING, TEACHER_EMBEDDING})

    def terms(self, config, step, module):
        from trainables.losses.rkd import rkd_loss

        weights = {"distance_weight": config.rkd_distance_weight, "angle_weight": config.rkd_angle_weight}
        return {"rkd": rkd_loss(step.student.embedding, step.teacher.embedding, **weights)}
