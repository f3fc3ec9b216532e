"""CC: correlation congruence (Peng et al., ICCV 2019, arXiv 1904.01802)."""

from typing import Literal

import torch
from torch import Tensor, nn

from trainables.losses.softened import full_precision

GAMMA = 0.4  # of the Gaussian kernel, the paper's


class Correlation(nn.Module):
    """Both embeddings through a linear layer each, then the congruence of the batch's correlations.

    Args:
        student_dim, teacher_dim: widths of the embeddings.
        dim: the common width.
        form: see `cc_loss`.
    """

    def __init__(self, student_dim: int, teacher_dim: int, dim: int, form: Literal["adjacent", "kernel"]):
        super().__init__()
        self.student, self.teacher, self.form = nn.Linear(student_dim, dim), nn.Linear(teacher_dim, dim), form

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """[B, student_dim] and [B, teacher_dim] to a scalar float32."""
        return cc_loss(self.student(student), self.teacher(teacher.detach()), self.form)


def cc_loss(student: Tensor, teacher: Tensor, form: Literal["adjacent", "kernel"] = "adjacent") -> Tensor:
    """How much the images of a batch relate differently to one another in student and teacher.

    - `form="adjacent"`, the form that distillation benchmarks (and OFA-KD's tables) compare with, given out by CC's
      authors: with d = |student - teacher|, the mean over neighbours in the batch of <d_i, d_i+1>.
    - `form="kernel"`, the paper's eq. 3 with its Gaussian kernel: the mean over all pairs of
      (k(teacher_i, teacher_j) - k(student_i, student_j))², k(x, y) = exp(-0.4 |x - y|²), on embeddings of length 1.

    Args:
        student, teacher: [B, D], any floating type.

    Returns:
        Scalar float32; 0 for a batch of one, which has no relations.
    """
    with full_precision(student):
        student, teacher = student.float(), teacher.float()
        if len(student) == 1:
            return 0.0 * (student.sum() + teacher.sum())
        if form == "adjacent":
            difference = (student - teacher).abs()
            return (difference[:-1] * difference[1:]).sum(dim=1).mean()
        return (_kernel(teacher) - _kernel(student)).square().mean()


def _kernel(embedding: Tensor) -> Tensor:
    unit = nn.functional.normalize(embedding, dim=1, eps=1e-6)
    return torch.exp(-GAMMA * (2 - 2 * unit @ unit.T))
