"""RSD: redundancy suppression distillation (Zhang et al., ICCV 2025, arXiv 2507.21844)."""

from torch import Tensor, nn

from trainables.losses.softened import full_precision
from trainables.projectors import initialize

LEAST_DEVIATION = 1e-5  # the authors'


class Expander(nn.Sequential):
    """The AAD module, which keeps architecture-specific information out of the student's embedding; training only.

    Args:
        student_dim: the student's embedding.
        teacher_dim: the teacher's, which it is brought to.
        expansion: hidden width over `student_dim`; the authors' is 2.
    """

    def __init__(self, student_dim: int, teacher_dim: int, expansion: int = 2):
        hidden = expansion * student_dim
        super().__init__(
            nn.Linear(student_dim, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, teacher_dim, bias=False),
        )
        self.apply(initialize)


def rsd_loss(student: Tensor, teacher: Tensor, *, kappa: float) -> Tensor:
    """Squared distance of the cross-correlation of student and teacher from the identity.

    Each dimension is standardised over the batch (biased deviation, plus 1e-5); P = Z_t' Z_s / B is [D, D]. Entries off
    the diagonal, the redundancy, are weighted by kappa. The sum over entries, as in the authors' code: it grows with D.
    It needs a batch much larger than one; under several workers the batch is each worker's own part.

    Args:
        student: [B, D], any floating type.
        teacher: [B, D], any floating type; gets no gradient.
        kappa: the authors' is 0.01.

    Returns:
        Scalar float32.
    """
    with full_precision(student):
        student, teacher = _standardized(student.float()), _standardized(teacher.detach().float())
        correlation = teacher.T @ student / len(student)
        diagonal = correlation.diagonal()
        off = correlation.square().sum() - diagonal.square().sum()
        return (diagonal - 1).square().sum() + kappa * off


def _standardized(x: Tensor) -> Tensor:
    return (x - x.mean(dim=0)) / (x.std(dim=0, correction=0) + LEAST_DEVIATION)
