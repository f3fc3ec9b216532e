"""Softened probabilities, in float32 whatever comes in: what all losses on logits are made of."""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

# A gap of logits beyond float32's range would give log 0 = -inf, and 0 * -inf = NaN. The bound leaves sums over
# thousands of classes with weights in the thousands finite.
LEAST_LOG_PROBABILITY = -1e30
LEAST_DEVIATION = 1e-7  # of logits, as in the authors' code


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager:
    """A context in which autocast does not lower the precision of operations on this tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)


def log_probabilities(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Logarithm of the softened softmax, finite at any finite logits, as are its gradients.

    Args:
        logits: [..., C], any floating type.
        temperature: divides the logits; a scalar tensor may have a gradient.

    Returns:
        [..., C] float32. A NaN or +inf logit gives NaN, so that a diverged model still shows.
    """
    logits = logits.float()
    # the gap to the largest logit is divided, not the logit itself: a temperature below 1 cannot overflow it
    gaps = (logits - logits.detach().amax(dim=-1, keepdim=True)) / temperature
    return F.log_softmax(gaps, dim=-1).clamp(min=LEAST_LOG_PROBABILITY)


def standardized(logits: Tensor) -> Tensor:
    """Logit standardisation (Sun et al., CVPR 2024, arXiv 2403.01427): every image's logits to mean 0 and deviation 1.

    The student need not match the teacher's range and variance of logits, which its size may forbid, only their order.

    Args:
        logits: [B, C], any floating type.

    Returns:
        [B, C] float32; zeros where all logits are equal. Finite, as its gradients, at any finite logits.
    """
    with full_precision(logits):
        logits = logits.float()
        gaps = logits - logits.detach().amax(dim=1, keepdim=True)
        scale = gaps.detach().abs().amax(dim=1, keepdim=True).clamp(min=1.0)  # squares stay in float32's range
        gaps = gaps / scale
        deviation = gaps.std(dim=1, keepdim=True)
        return (gaps - gaps.mean(dim=1, keepdim=True)) / (deviation + LEAST_DEVIATION / scale)
