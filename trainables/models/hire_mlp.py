"""Hire-MLP (Guo et al., CVPR 2022, arXiv 2108.13341), after the paper; timm has none.

Rows (or columns) are cut into regions, and the tokens of a region are stacked along the channels and mixed there: the
inner-region rearrangement. In some blocks all tokens are first shifted in a circle, so that regions change their
members: the cross-region rearrangement. Grids that regions do not divide are continued in a circle, so any image size
goes.

The state dict has the official implementation's names and shapes: `patch_embed.{proj,norm}`,
`network.{0,2,4,6}.{block}.{norm1,attn,norm2,mlp}`, `network.{1,3,5}.{proj,norm}`, `norm`, `head`. So its checkpoints
should load; none is downloaded here, and none was at hand to try.
"""

import torch
import torch.nn as nn
from timm.layers import DropPath, Mlp
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from trainables.models.pyramid import CFG, Pyramid, create, reweighted


def rearrange(x: Tensor, dim: int, region: int) -> Tensor:
    """Stacks the tokens of each region along the channels.

    Args:
        x: [B, C, H, W].
        dim: 2 for regions of rows, 3 of columns.
        region: tokens in one; where they do not divide the grid, it is continued with its own beginning.

    Returns:
        For rows, [B, C * region, ceil(H / region), W].
    """
    size = x.shape[dim]
    if missing := -size % region:
        around, rest = divmod(missing, size)
        x = torch.cat([x] * (1 + around) + [x.narrow(dim, 0, rest)], dim)
    return x.unflatten(dim, (-1, region)).movedim(dim + 1, 2).flatten(1, 2)


def restore(x: Tensor, dim: int, region: int, size: int) -> Tensor:
    """Undoes `rearrange`, [B, C * region, ...] to [B, C, ...] with `size` tokens along `dim`."""
    return x.unflatten(1, (-1, region)).movedim(2, dim + 1).flatten(dim, dim + 1).narrow(dim, 0, size)


class HireMixer(nn.Module):
    """Three branches side by side, over regions of rows, over regions of columns and in place, merged by attention.

    Args:
        dim: channels.
        region: tokens in a region.
        step: tokens by which all are shifted, in a circle, before regions are cut; 0 for none.
        drop: dropout after the last layer.
    """

    def __init__(self, dim: int, region: int, step: int, drop: float = 0.0):
        super().__init__()
        self.region = region
        self.step = step
        self.mlp_h1 = nn.Conv2d(dim * region, dim // 2, 1, bias=False)
        self.mlp_h1_norm = nn.BatchNorm2d(dim // 2)
        self.mlp_h2 = nn.Conv2d(dim // 2, dim * region, 1)
        self.mlp_w1 = nn.Conv2d(dim * region, dim // 2, 1, bias=False)
        self.mlp_w1_norm = nn.BatchNorm2d(dim // 2)
        self.mlp_w2 = nn.Conv2d(dim // 2, dim * region, 1)
        self.mlp_c = nn.Conv2d(dim, dim, 1)
        self.act = nn.ReLU()
        self.reweight = Mlp(dim, dim // 4, dim * 3, use_conv=True)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim, H, W], unchanged in shape."""
        h = self._mixed(x, 2, self.mlp_h1, self.mlp_h1_norm, self.mlp_h2)
        w = self._mixed(x, 3, self.mlp_w1, self.mlp_w1_norm, self.mlp_w2)
        return self.proj_drop(self.proj(reweighted(h, w, self.mlp_c(x), self.reweight, (2, 3))))

    def _mixed(self, x: Tensor, dim: int, narrow: nn.Module, norm: nn.Module, widen: nn.Module) -> Tensor:
        size = x.shape[dim]
        if self.step:
            x = x.roll(self.step, dim)
        x = widen(self.act(norm(narrow(rearrange(x, dim, self.region)))))
        x = restore(x, dim, self.region, size)
        return x.roll(-self.step, dim) if self.step else x


class HireBlock(nn.Module):
    """A mixer and an MLP over channels, each behind a batch norm and beside a residual path.

    Args:
        dim: channels.
        mlp_ratio: the MLP's hidden width over `dim`.
        region: as for `HireMixer`.
        step: as for `HireMixer`.
        drop: dropout in the mixer and the MLP.
        drop_path: stochastic depth rate.
    """

    def __init__(self, dim: int, mlp_ratio: float, region: int, step: int, drop: float = 0.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = HireMixer(dim, region, step, drop)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop, use_conv=True)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim, H, W], unchanged in shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A strided convolution, whose windows overlap where `kernel` exceeds `stride`, a batch norm and a ReLU."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int, stride: int, padding: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chs, out_chs, kernel, stride, padding)
        self.norm = nn.BatchNorm2d(out_chs)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chs, H, W] to [B, out_chs, H / stride, W / stride]."""
        return self.act(self.norm(self.proj(x)))


class HireMLP(Pyramid):
    """The classifier: four stages of `HireBlock`s, a batch norm, the mean over the image, a linear layer.

    Args:
        depths: blocks, by stage.
        dims: channels, by stage.
        mlp_ratios: hidden width of the blocks' MLPs over their channels, by stage.
        regions: tokens in a region, by stage.
        steps: shifts that a stage's blocks take in turn, by stage.
        proj_drop_rate: dropout inside the blocks.
        drop_path_rate: stochastic depth of the last block.
        **kwargs: further arguments of `Pyramid`.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 4, 2),
        dims: tuple[int, ...] = (64, 128, 320, 512),
        mlp_ratios: tuple[float, ...] = (4, 4, 4, 4),
        regions: tuple[int, ...] = (4, 3, 3, 2),
        steps: tuple[tuple[int, ...], ...] = ((0, 2), (0, 2), (0, 1, 2), (0, 1)),
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **kwargs,
    ):
        def block(stage: int, index: int, rate: float) -> HireBlock:
            step = steps[stage][index % len(steps[stage])]
            return HireBlock(dims[stage], mlp_ratios[stage], regions[stage], step, proj_drop_rate, rate)

        super().__init__(PatchEmbed, block, nn.BatchNorm2d, depths, dims, drop_path_rate=drop_path_rate, **kwargs)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs({f"hire_mlp_{size}.untrained": CFG for size in ("tiny", "small", "base")})


@register_model
def hire_mlp_tiny(pretrained: bool = False, **kwargs) -> HireMLP:
    """Hire-MLP-Tiny: 10 blocks, 18 M parameters. `pretrained` must be False; `kwargs` are arguments of `HireMLP`."""
    return create(HireMLP, "hire_mlp_tiny", pretrained, {"depths": (2, 2, 4, 2)}, kwargs)


@register_model
def hire_mlp_small(pretrained: bool = False, **kwargs) -> HireMLP:
    """Hire-MLP-Small: 20 blocks, 33 M parameters. `pretrained` must be False; `kwargs` are arguments of `HireMLP`."""
    return create(HireMLP, "hire_mlp_small", pretrained, {"depths": (3, 4, 10, 3)}, kwargs)


@register_model
def hire_mlp_base(pretrained: bool = False, **kwargs) -> HireMLP:
    """Hire-MLP-Base: 37 blocks, 58 M parameters. `pretrained` must be False; `kwargs` are arguments of `HireMLP`."""
    return create(HireMLP, "hire_mlp_base", pretrained, {"depths": (4, 6, 24, 3)}, kwargs)
