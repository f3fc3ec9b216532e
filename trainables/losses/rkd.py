"""RKD: relational knowledge distillation (Park et al., CVPR 2019, arXiv 1904.05068)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.losses.softened import full_precision

LEAST_DISTANCE = 1e-6  # nearer embeddings count as equal: their direction has no meaning, and no gradient


def rkd_loss(student: Tensor, teacher: Tensor, *, distance_weight: float, angle_weight: float) -> Tensor:
    """Distances of all pairs and angles of all triplets of a batch, matched by the smooth L1 loss.

    Distances are divided by their mean over the pairs (eq. 5 to 7); angles are the cosines at each image of each two
    others (eq. 8 and 9). As in the authors' code, means run over all B² pairs and B³ triplets, degenerate ones
    included. The angles take B³ + B² D floats of memory. Under several workers the batch is each worker's own part.

    Args:
        student: [B, D], any floating type.
        teacher: [B, E], any floating type; gets no gradient.
        distance_weight, angle_weight: of the two parts; the paper's are 25 and 50.

    Returns:
        Scalar float32; 0 for a batch of one, which has no relations.
    """
    with full_precision(student):
        student, teacher = student.float(), teacher.detach().float()
        if len(student) == 1:
            return 0.0 * student.sum()
        distances, units = zip(_relations(student), _relations(teacher), strict=True)
        distance_part = F.smooth_l1_loss(*(distance / _mean_of_pairs(distance) for distance in distances))
        angle_part = F.smooth_l1_loss(*(unit @ unit.transpose(1, 2) for unit in units))
        return distance_weight * distance_part + angle_weight * angle_part


def _relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [B, B], and unit vectors [B, B, D] from each image to each other one; zero where images are equal."""
    differences = x.unsqueeze(0) - x.unsqueeze(1)
    squares = differences.square().sum(dim=2)
    apart = squares > LEAST_DISTANCE**2
    distances = torch.where(apart, squares, 1.0).sqrt()  # the root of 0 has no gradient
    return distances * apart, differences / distances.unsqueeze(2) * apart.unsqueeze(2)


def _mean_of_pairs(distances: Tensor) -> Tensor:
    return distances.sum() / (distances > 0).sum().clamp(min=1) + LEAST_DISTANCE * (distances == 0).all()
