"""OFA-KD's loss: adaptive target enhancement, in float32 whatever comes in."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.losses.softened import full_precision, log_probabilities

LEAST_PROBABILITY = torch.finfo(torch.float32).tiny


def enhanced_targets(
    teacher_logits: Tensor,
    target: Tensor,
    *,
    eps: float | Sequence[float],
    temperature: float | Tensor = 1.0,
    enhance: Literal["all", "target"] = "all",
) -> Tensor:
    """The teacher's side of the OFA loss: a weight for every class's log-probability.

    Args:
        teacher_logits: [B, C], any floating type; gets no gradient.
        target: [B] class indices, or [B, C] mixed labels, whose largest entry (the lowest index among equals) is the
            class that is enhanced.
        eps: exponent, the paper's gamma; or one an output, which all share the teacher's softmax.
        temperature: softens the teacher.
        enhance: see `ofa_loss`.

    Returns:
        [B, C] float32, or [S, B, C] for S exponents, with a gradient for the temperature alone. Rows sum to 1 only for
        `enhance="all"` with eps = 1.
    """
    if target.ndim == 2:
        target = target.argmax(dim=1)
    with full_precision(teacher_logits):
        probabilities = log_probabilities(teacher_logits.detach(), temperature).exp()
        one_hot = F.one_hot(target, probabilities.shape[1])
        base = probabilities + one_hot
        above_zero = base.clamp(min=LEAST_PROBABILITY)  # at 0 itself a power below 1 has no gradient

        def enhanced(exponent: float) -> Tensor:
            if enhance == "target":
                return torch.where(one_hot == 1, (1 + probabilities) ** exponent, probabilities)
            return torch.where(base > 0, above_zero**exponent, 0.0) - one_hot

        if not isinstance(eps, Sequence):
            return enhanced(eps)
        distinct = {exponent: enhanced(exponent) for exponent in dict.fromkeys(eps)}
        return torch.stack([distinct[exponent] for exponent in eps])


def weighted_cross_entropy(student_logits: Tensor, weights: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Batch mean of -sum_c w_c log p_s,c.

    Args:
        student_logits: [B, C], or those of S outputs [S, B, C]; any floating type.
        weights: [B, C], as `enhanced_targets` gives them, for all outputs, or [S, B, C].
        temperature: softens the student.

    Returns:
        Scalar float32, or [S].
    """
    with full_precision(student_logits):
        return -(weights * log_probabilities(student_logits, temperature)).sum(dim=-1).mean(dim=-1)


def ofa_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    eps: float,
    temperature: float | Tensor = 1.0,
    enhance: Literal["all", "target"] = "all",
) -> Tensor:
    """One-for-all distillation loss with adaptive target enhancement (Hao et al., NeurIPS 2023).

    With m the target's one-hot vector and p the softmax at the temperature:

    - `enhance="all"`, the official implementation: `-sum_c ((p_t,c + m_c)^eps - m_c) log p_s,c`. Every class is raised
      to eps. At eps = 1 it is the soft cross-entropy with the teacher.
    - `enhance="target"`, the paper's printed equation:
      `-(1 + p_t,y)^eps log p_s,y - sum_{c != y} p_t,c log p_s,c`. Only the target's term is raised, and the 1 is not
      subtracted again: at eps = 1 it is the other form plus one cross-entropy with the target, `-log p_s,y`.

    There is no factor T², as in the official implementation; gradients shrink with about 1/T².

    Args:
        student_logits: [B, C], any floating type.
        teacher_logits: [B, C], any floating type; gets no gradient.
        target: [B] class indices, or [B, C] mixed labels, of which the dominant class is enhanced.
        eps: exponent, the paper's gamma; above 1 it boosts the target class.
        temperature: softens both sides.
        enhance: "all" or "target".

    Returns:
        The batch mean, a scalar float32; finite, with finite gradients, at any finite logits.
    """
    weights = enhanced_targets(teacher_logits, target, eps=eps, temperature=temperature, enhance=enhance)
    return weighted_cross_entropy(student_logits, weights, temperature)
