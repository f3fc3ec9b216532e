"""DIST: knowledge distillation from a stronger teacher (Huang et al., NeurIPS 2022, arXiv 2205.10536)."""

import torch.nn.functional as F
from torch import Tensor

from trainables.losses.softened import full_precision, log_probabilities


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float,
    gamma: float,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """T² (beta inter + gamma intra): relations are matched by Pearson's correlation instead of probabilities by KL.

    `inter` is 1 minus the correlation of student's and teacher's softened probabilities over the classes, averaged over
    images (eq. 8); `intra` is the same over the images of the batch, averaged over classes (eq. 9). The factor T² is
    that of the authors' code. Under several workers the batch is each worker's own part.

    Args:
        student_logits: [B, C], any floating type.
        teacher_logits: [B, C], any floating type; gets no gradient.
        beta, gamma: weights of the two parts.
        temperature: softens both sides.

    Returns:
        Scalar float32. A constant row or column counts as uncorrelated.
    """
    with full_precision(student_logits):
        student = log_probabilities(student_logits, temperature).exp()
        teacher = log_probabilities(teacher_logits.detach(), temperature).exp()
        inter = 1 - _correlation(student, teacher).mean()
        intra = 1 - _correlation(student.T, teacher.T).mean()
        return temperature**2 * (beta * inter + gamma * intra)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of each row."""
    return F.cosine_similarity(x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True), dim=1)
