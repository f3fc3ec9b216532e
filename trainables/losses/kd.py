"""Hinton's knowledge distillation."""

import torch.nn.functional as F
from torch import Tensor

from trainables.losses.softened import full_precision, log_probabilities


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Knowledge distillation (Hinton et al., 2015): T² KL(p_t || p_s), both softened by T.

    Args:
        student_logits: [B, C], any floating type.
        teacher_logits: [B, C], any floating type; gets no gradient.
        temperature: T; a scalar tensor gets a gradient through both sides and the factor.

    Returns:
        The batch mean, a scalar float32.
    """
    with full_precision(student_logits):
        student = log_probabilities(student_logits, temperature)
        teacher = log_probabilities(teacher_logits.detach(), temperature)
        return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")
