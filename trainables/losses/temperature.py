"""A temperature that is learned: curriculum temperature for knowledge distillation (CTKD)."""

import math

import torch
from torch import Tensor, nn


class CurriculumTemperature(nn.Module):
    """One global temperature, learned against the student (Li et al., AAAI 2023, arXiv 2211.16231).

    T = low + (high - low) * sigmoid(t), with t learned by gradient ascent on the loss: its gradient is reversed and
    multiplied by a strength that grows from 0 to `strength` along a half cosine over the first `epochs` epochs, so that
    the task begins easy and grows harder. t starts at 1, as in the authors' code.

    Args:
        low, high: bounds of T; the authors' are 1 and 21.
        epochs: over which the strength grows.
        strength: the largest factor of the reversed gradient, the paper's lambda.
    """

    def __init__(self, low: float = 1.0, high: float = 21.0, epochs: int = 10, strength: float = 1.0):
        super().__init__()
        self.low, self.high, self.epochs, self.strength = low, high, epochs, strength
        self.raw = nn.Parameter(torch.ones(()))

    def forward(self, epoch: int) -> Tensor:
        """The temperature, a scalar, for an epoch that counts from 0."""
        progress = min(epoch / self.epochs, 1.0)
        strength = self.strength * 0.5 * (1 - math.cos(math.pi * progress))
        return self.low + (self.high - self.low) * torch.sigmoid(_Reversed.apply(self.raw, strength))


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is multiplied by minus the strength (Ganin and Lempitsky, ICML 2015)."""

    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.strength * gradient, None
