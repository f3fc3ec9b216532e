"""OFA: one-for-all distillation between any two architectures (Hao et al., NeurIPS 2023, arXiv 2310.19444)."""

from typing import Literal

from pydantic import Field, field_validator

from trainables.distillers.base import COMMON, STAGE_LOGITS, Distiller, register
from trainables.fields import Range, Strict


class OFAFields(Strict):
    """OFA-KD's own hyperparameters."""

    eps: float | list[float] = 1.0  # one, or one per stage in the order of `stages` and one for the logits
    ofa_loss_weight: float = Field(1.0, ge=0)  # of the sum over the stages; kd_loss_weight is that of the logits
    enhance: Literal["all", "target"] = "all"  # the official code's form, or the paper's printed equation
    temperature_squared: bool = False  # multiply its terms by T², so that T leaves gradients' scale alone

    @field_validator("eps")
    @classmethod
    def _eps_is_positive(cls, eps):
        if any(value <= 0 for value in (eps if isinstance(eps, list) else [eps])):
            raise ValueError("eps must be above 0")
        return eps


@register
class OFA(Distiller):
    """The teacher's final logits against the student's and against each chosen stage's, target class enhanced.

    `kd` is the loss of the final logits with the last eps; `ofa` is the sum, not the mean, over the stages, each with
    its own eps.
    """

    name = "ofa"
    title = "OFA-KD (Hao et al., NeurIPS 2023)"
    Fields = OFAFields
    ranges = {
        "eps": Range(0.8, 2.5),
        "temperature": Range(0.5, 8.0, log=True),
        "kd_loss_weight": Range(0.1, 2.0),
        "ofa_loss_weight": Range(0.03, 2.0, log=True),
        "logit_standardization": Range(choices=(False, True)),
    }
    weights = {"kd": "kd_loss_weight", "ofa": "ofa_loss_weight"}
    needs = frozenset({STAGE_LOGITS})
    stage_terms = frozenset({"ofa"})
    common = frozenset(COMMON)
    on_logits = True

    def terms(self, config, step, module):
        import torch

        from trainables.losses.ofa import enhanced_targets, weighted_cross_entropy

        # One pass over the stages' logits and the final ones together: a GPU would else wait for many small kernels.
        outputs = [*step.student.stage_logits.values(), step.student.logits]
        eps = config.eps if isinstance(config.eps, list) else [config.eps]
        if len(eps) > 1:
            of_stage = dict(zip(config.stages, eps, strict=False))
            eps = [of_stage[stage] for stage in step.student.stage_logits] + eps[-1:]
        weights = enhanced_targets(
            step.teacher.logits,
            step.target,
            eps=eps if len(set(eps)) > 1 else eps[0],
            temperature=step.temperature,
            enhance=config.enhance,
        )
        losses = weighted_cross_entropy(torch.stack(outputs), weights, step.temperature)
        if config.temperature_squared:
            losses = step.temperature**2 * losses
        terms = {"kd": losses[-1]}
        if step.student.stage_logits:
            terms["ofa"] = losses[:-1].sum()
        return terms
