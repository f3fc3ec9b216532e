"""Branches that turn a student's feature into class logits, so that it can be compared with the teacher's logits.

Training only: they are not part of the exported student. All take features as timm gives them, [B, C, H, W].
"""

import math

import torch.nn as nn
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor

LEAST_GRID = 7  # token grids are merged down to about this side, as in the official implementation
HEADS = 4


class SepConv(nn.Sequential):
    """Two depthwise-separable 3x3 convolutions: the first halves height and width, the second widens to `out_chs`."""

    def __init__(self, in_chs: int, out_chs: int):
        super().__init__(*self._half(in_chs, in_chs, 2), *self._half(in_chs, out_chs, 1))

    @staticmethod
    def _half(in_chs, out_chs, stride):
        return (
            nn.Conv2d(in_chs, in_chs, 3, stride, 1, groups=in_chs, bias=False),
            nn.Conv2d(in_chs, out_chs, 1, bias=False),
            nn.BatchNorm2d(out_chs),
            nn.ReLU(),
        )


class ConvProjector(nn.Module):
    """The official branch of convolutional students: the rest of the pyramid as a SepConv chain, then a linear head.

    Stage k of K passes K - k halvings, each doubling the width and the last one ending at `out_dim`; the last stage
    passes one 1x1 convolution.

    The official width is max(student's, teacher's) and so changes with the teacher; only logits are compared, so here
    it is the student's alone, and a student's projectors are the same beside every teacher.

    Args:
        in_chs: channels of the feature.
        stage: 1 to `num_stages`.
        out_dim: width before the classifier, the student's `num_features`.
        num_classes: logits.
        num_stages: stages the student has.
    """

    def __init__(self, in_chs: int, stage: int, out_dim: int, num_classes: int, num_stages: int = 4):
        super().__init__()
        halvings = num_stages - stage
        widths = [in_chs * 2**i for i in range(halvings)] + [out_dim]
        chain = [SepConv(widths[i], widths[i + 1]) for i in range(halvings)] or [nn.Conv2d(in_chs, out_dim, 1)]
        self.chain = nn.Sequential(*chain)
        self.head = nn.Linear(out_dim, num_classes)
        self.apply(initialize)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chs, H, W] to [B, num_classes]."""
        return self.head(self.chain(x).mean(dim=(2, 3)))


class PatchMerging(nn.Module):
    """Four neighbouring tokens become one: [B, H, W, in_dim] to [B, ceil(H / 2), ceil(W / 2), out_dim].

    Odd grids are padded with zeros at the bottom and the right.
    """

    def __init__(self, in_dim: int, out_dim: int, act: bool):
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_dim)
        self.reduction = nn.Linear(4 * in_dim, out_dim, bias=False)
        self.act = nn.GELU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(b, h // 2, w // 2, 4 * c)
        return self.act(self.reduction(self.norm(x)))


class TokenProjector(nn.Module):
    """The official branch of transformers and MLPs: patch merging to a grid of about 7, ViT blocks, mean, linear head.

    There are log2(grid / 7) mergings, rounded down, and max(4 - stage, 1) blocks. The official head reads the class
    token where a model has one; timm's [B, C, H, W] features hold patch tokens only, so this head averages those.

    Args:
        dim: channels of the feature.
        grid: (height, width) of the feature in tokens, any size.
        stage: 1 to 4.
        num_classes: logits.
        out_dim: width of the blocks, the student's `num_features`.
    """

    def __init__(self, dim: int, grid: tuple[int, int], stage: int, num_classes: int, out_dim: int):
        super().__init__()
        merges = max(int(math.log2(min(grid) / LEAST_GRID)), 0)
        # the first merging ends in an activation even when it is the last, as in the official implementation
        merging = [
            PatchMerging(dim if i == 0 else out_dim, out_dim, act=i == 0 or i < merges - 1) for i in range(merges)
        ]
        if not merging and dim != out_dim:
            merging = [nn.Linear(dim, out_dim)]
        heads = next(heads for heads in range(HEADS, 0, -1) if out_dim % heads == 0)
        self.merging = nn.Sequential(*merging)
        self.blocks = nn.Sequential(*(Block(out_dim, heads, mlp_ratio=4) for _ in range(max(4 - stage, 1))))
        self.head = nn.Linear(out_dim, num_classes)
        self.apply(initialize)

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim, H, W] to [B, num_classes]."""
        tokens = self.merging(x.permute(0, 2, 3, 1)).flatten(1, 2)
        return self.head(self.blocks(tokens).mean(dim=1))


class PooledProjector(nn.Module):
    """A light branch of ours for any feature: mean over the image, layer norm, linear head.

    The official branches can be three times the student's size; this one has in_chs * num_classes weights and little
    more. Whether they buy accuracy for their cost is for a search to tell.

    Args:
        in_chs: channels of the feature.
        num_classes: logits.
    """

    def __init__(self, in_chs: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(in_chs)
        self.head = nn.Linear(in_chs, num_classes)
        self.apply(initialize)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chs, H, W] to [B, num_classes]."""
        return self.head(self.norm(x.mean(dim=(2, 3))))


def initialize(module: nn.Module) -> None:
    """The official initial weights of a branch's layer, for `nn.Module.apply`."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    else:
        return  # norms start at weight 1 and bias 0
    if module.bias is not None:
        nn.init.zeros_(module.bias)
