"""KD: knowledge distillation (Hinton et al., 2015, arXiv 1503.02531)."""

from trainables.distillers.base import COMMON, Distiller, register
from trainables.fields import Range


@register
class KD(Distiller):
    """T² KL(teacher || student) of the final logits, both softened by T."""

    name = "kd"
    title = "knowledge distillation (Hinton et al., 2015)"
    ranges = {
        "temperature": Range(1.0, 8.0, log=True),
        "kd_loss_weight": Range(0.1, 4.0, log=True),
        "logit_standardization": Range(choices=(False, True)),
    }
    weights = {"kd": "kd_loss_weight"}
    common = frozenset(COMMON)
    on_logits = True

    def terms(self, config, step, module):
        from trainables.losses.kd import kd_loss

        return {"kd": kd_loss(step.student.logits, step.teacher.logits, step.temperature)}
