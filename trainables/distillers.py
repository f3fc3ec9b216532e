"""Which losses a distiller adds up, and with which weights."""

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor

from trainables.config import TrialConfig
from trainables.losses import enhanced_targets, full_precision, kd_loss, weighted_cross_entropy


def distillation_terms(
    config: TrialConfig,
    student_logits: Tensor,
    stage_logits: dict[int, Tensor],
    teacher_logits: Tensor | None,
    target: Tensor,
) -> dict[str, Tensor]:
    """The loss of a step and the terms it is made of.

    - distiller "none": `gt` only.
    - distiller "kd": `gt` and `kd`, which is T² KL(teacher || student).
    - distiller "ofa" (the official OFA-KD): `kd` is the OFA loss of the final logits with the last eps, `ofa` is the
      sum, not the mean, of the stages' OFA losses, each with its own eps.

    `normalize_loss_weights` divides the weights by the sum of those whose terms there are. `temperature_squared`
    multiplies the OFA losses by T²; KD has its T² always.

    Args:
        config: the distiller's fields and the recipe's `smoothing` and `bce_loss`, which shape the cross-entropy.
        student_logits: [B, C].
        stage_logits: stage number to [B, C]; stages without a projector are left out.
        teacher_logits: [B, C], or None for the distiller "none".
        target: [B] class indices or [B, C] mixed labels.

    Returns:
        Scalars, float32: `gt`, `kd` and `ofa` unweighted (zero where the distiller has no such term), and `loss`,
        their weighted sum.
    """
    zero = torch.zeros((), device=student_logits.device)
    gt = ground_truth_loss(student_logits, target, config.smoothing, config.bce_loss)
    terms = {"gt": gt, "kd": zero, "ofa": zero}
    if config.distiller == "kd":
        terms["kd"] = kd_loss(student_logits, teacher_logits, config.temperature)
    elif config.distiller == "ofa":
        terms |= _ofa_terms(config, student_logits, stage_logits, teacher_logits, target)
    weights = {"gt": config.gt_loss_weight, "kd": config.kd_loss_weight, "ofa": config.ofa_loss_weight}
    active = {"none": ["gt"], "kd": ["gt", "kd"], "ofa": ["gt", "kd", "ofa"] if stage_logits else ["gt", "kd"]}
    scale = sum(weights[name] for name in active[config.distiller]) if config.normalize_loss_weights else 1.0
    terms["loss"] = sum(weight / scale * terms[name] for name, weight in weights.items())
    return terms


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


def _ofa_terms(config, student_logits, stage_logits, teacher_logits, target) -> dict[str, Tensor]:
    eps = config.eps if isinstance(config.eps, list) else [config.eps]
    if len(eps) == 1:
        eps = eps * (len(config.stages) + 1)
    options = {"temperature": config.temperature, "enhance": config.enhance}
    # the teacher's side depends on eps alone, so stages that share it share the work
    targets = {value: enhanced_targets(teacher_logits, target, eps=value, **options) for value in set(eps)}
    stage_eps = dict(zip(config.stages, eps[:-1], strict=True))
    kd = weighted_cross_entropy(student_logits, targets[eps[-1]], config.temperature)
    ofa = torch.zeros((), device=student_logits.device)
    for stage, logits in stage_logits.items():
        ofa = ofa + weighted_cross_entropy(logits, targets[stage_eps[stage]], config.temperature)
    scale = config.temperature**2 if config.temperature_squared else 1.0
    return {"kd": scale * kd, "ofa": scale * ofa}
