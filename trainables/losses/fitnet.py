"""FitNet: hints from intermediate features (Romero et al., ICLR 2015, arXiv 1412.6550), also across architectures."""

import torch.nn.functional as F
from torch import Tensor, nn

from trainables.losses.softened import full_precision
from trainables.projectors import initialize


class Hints(nn.Module):
    """One 1x1 convolution a stage that brings the student's channels to the teacher's.

    The paper (and the official implementation) has convolutional pairs in mind. Any two features work here, since all
    arrive as [B, C, H, W]: the larger grid of the two is averaged down to the smaller one's. Where both grids are equal
    it is the published loss.

    Args:
        student, teacher: stage to (channels, height, width); stages that both have are matched.
    """

    def __init__(self, student: dict[int, tuple[int, int, int]], teacher: dict[int, tuple[int, int, int]]):
        super().__init__()
        self.regressors = nn.ModuleDict(
            {
                str(stage): nn.Conv2d(student[stage][0], teacher[stage][0], 1, bias=False)
                for stage in matched(student, teacher)
            }
        )
        self.apply(initialize)

    def forward(self, student: dict[int, Tensor], teacher: dict[int, Tensor]) -> Tensor:
        """The sum over stages of the mean squared difference, a scalar float32.

        Args:
            student, teacher: stage to [B, C, H, W].
        """
        losses = []
        for stage, regressor in self.regressors.items():
            ours, theirs = regressor(student[int(stage)]), teacher[int(stage)].detach()
            with full_precision(ours):
                grid = tuple(map(min, ours.shape[2:], theirs.shape[2:]))
                losses.append(F.mse_loss(_averaged(ours.float(), grid), _averaged(theirs.float(), grid)))
        return sum(losses)


def matched(student: dict, teacher: dict) -> list[int]:
    """The stages that both have."""
    return [stage for stage in student if stage in teacher]


def _averaged(feature: Tensor, grid: tuple[int, int]) -> Tensor:
    return feature if feature.shape[2:] == grid else F.adaptive_avg_pool2d(feature, grid)
