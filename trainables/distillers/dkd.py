"""DKD: decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679)."""

from pydantic import Field

from trainables.distillers.base import COMMON, Distiller, register
from trainables.fields import Range, Strict


class DKDFields(Strict):
    """DKD's own hyperparameters: the official OFA-KD code's (with T = 1); DKD's authors have 1, 8, T = 4."""

    dkd_alpha: float = Field(1.0, ge=0)  # of the target against the rest
    dkd_beta: float = Field(2.0, ge=0)  # of the classes among the rest
    dkd_warmup_epochs: int = Field(0, ge=0)  # its loss grows linearly over them; the authors' is 20


@register
class DKD(Distiller):
    """KD taken apart: the target against all others, and the others among themselves, each with its weight."""

    name = "dkd"
    title = "decoupled KD (Zhao et al., CVPR 2022)"
    Fields = DKDFields
    ranges = {
        "dkd_alpha": Range(0.5, 2.0, log=True),
        "dkd_beta": Range(0.5, 8.0, log=True),
        "temperature": Range(1.0, 8.0, log=True),
        "kd_loss_weight": Range(0.1, 2.0, log=True),
    }
    weights = {"kd": "kd_loss_weight"}
    common = frozenset(COMMON)
    on_logits = True

    def replays(self, config):
        return not config.dkd_warmup_epochs  # an epoch's number is the weight

    def terms(self, config, step, module):
        from trainables.losses.dkd import dkd_loss

        loss = dkd_loss(
            step.student.logits,
            step.teacher.logits,
            step.classes(),
            alpha=config.dkd_alpha,
            beta=config.dkd_beta,
            temperature=step.temperature,
        )
        warm_up = min(1.0, (step.epoch + 1) / config.dkd_warmup_epochs) if config.dkd_warmup_epochs else 1.0
        return {"kd": warm_up * loss}
