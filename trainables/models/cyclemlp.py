"""CycleMLP (Chen et al., ICLR 2022, arXiv 2107.10224), after the paper; timm has none.

A layer acts as one matrix over channels, yet each input channel is read from a neighbour whose distance cycles with
the channel's number. So it sees some space, costs no more than a channel-wise layer and takes any image size.

The state dict has the official implementation's names and shapes, the fixed `offset` of each Cycle FC layer included:
`patch_embed.proj`, `network.{0,2,4,6}.{block}.{norm1,attn,norm2,mlp}`, `network.{1,3,5}.proj`, `norm`, `head`. So its
checkpoints should load; none is downloaded here, and none was at hand to try.
"""

from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from trainables.models.pyramid import CFG, Pyramid, create, reweighted


class CycleFC(nn.Module):
    """A fully connected layer over channels that reads channel c at an offset that cycles with c.

    With a kernel of 3 along an axis the offsets of channels 0, 1, 2, 3, ... are 0, 1, -1, 0, ...; what lies beyond the
    border is zero. A fixed depthwise convolution does the reading. It equals a 1x1 deformable convolution of these
    offsets, whose kernels in torchvision know no bfloat16 and are slow on CPUs.

    Args:
        in_chs: channels in.
        out_chs: channels out.
        kernel: (1, k) to look along the width, (k, 1) along the height, k odd.
    """

    def __init__(self, in_chs: int, out_chs: int, kernel: tuple[int, int]):
        super().__init__()
        if min(kernel) != 1 or max(kernel) % 2 == 0:
            raise ValueError(f"kernel={kernel}: give (1, k) or (k, 1) with an odd k")
        self.weight = nn.Parameter(torch.empty(out_chs, in_chs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_chs))
        reach = max(kernel) // 2
        steps = (torch.arange(in_chs) + reach) % max(kernel) - reach
        along = torch.tensor([kernel[0] > 1, kernel[1] > 1])
        # one pair (down, right) for each channel
        self.register_buffer("offset", (steps[:, None] * along).float().reshape(1, 2 * in_chs, 1, 1))
        places = F.one_hot(steps + reach, max(kernel)).float().reshape(in_chs, 1, *kernel)
        self.register_buffer("places", places, persistent=False)
        self.padding = (kernel[0] // 2, kernel[1] // 2)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chs, H, W] to [B, out_chs, H, W]."""
        read = F.conv2d(x, self.places, padding=self.padding, groups=x.shape[1])
        return F.conv2d(read, self.weight, self.bias)


class CycleMixer(nn.Module):
    """Three layers side by side, along the width, along the height and in place, merged by split attention.

    Args:
        dim: channels.
        kernel: positions that the offsets cycle through.
        drop: dropout after the last layer.
    """

    def __init__(self, dim: int, kernel: int = 3, drop: float = 0.0):
        super().__init__()
        self.mlp_c = nn.Linear(dim, dim, bias=False)
        self.sfc_h = CycleFC(dim, dim, (1, kernel))
        self.sfc_w = CycleFC(dim, dim, (kernel, 1))
        self.reweight = Mlp(dim, dim // 4, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, dim], unchanged in shape."""
        planes = x.permute(0, 3, 1, 2)
        h, w = (layer(planes).permute(0, 2, 3, 1) for layer in (self.sfc_h, self.sfc_w))
        return self.proj_drop(self.proj(reweighted(h, w, self.mlp_c(x), self.reweight, (1, 2))))


class CycleBlock(nn.Module):
    """A mixer and an MLP over channels, each behind a layer norm and beside a residual path.

    Args:
        dim: channels.
        mlp_ratio: the MLP's hidden width over `dim`.
        drop: dropout in the mixer and the MLP.
        drop_path: stochastic depth rate.
    """

    def __init__(self, dim: int, mlp_ratio: float, drop: float = 0.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = CycleMixer(dim, drop=drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim, H, W], unchanged in shape."""
        x = x.permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """A strided convolution; its windows overlap where `kernel` exceeds `stride`."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int, stride: int, padding: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chs, out_chs, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chs, H, W] to [B, out_chs, H / stride, W / stride]."""
        return self.proj(x)


class CycleMLP(Pyramid):
    """The classifier: four stages of `CycleBlock`s, a layer norm, the mean over the image, a linear layer.

    Args:
        depths: blocks, by stage.
        dims: channels, by stage.
        mlp_ratios: hidden width of the blocks' MLPs over their channels, by stage.
        proj_drop_rate: dropout inside the blocks.
        drop_path_rate: stochastic depth of the last block.
        **kwargs: further arguments of `Pyramid`.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 4, 2),
        dims: tuple[int, ...] = (64, 128, 320, 512),
        mlp_ratios: tuple[float, ...] = (4, 4, 4, 4),
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **kwargs,
    ):
        def block(stage: int, index: int, rate: float) -> CycleBlock:
            return CycleBlock(dims[stage], mlp_ratios[stage], proj_drop_rate, rate)

        norm = partial(LayerNorm2d, eps=1e-5)
        super().__init__(PatchEmbed, block, norm, depths, dims, drop_path_rate=drop_path_rate, **kwargs)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs(
    {
        "cyclemlp_b1.untrained": CFG,
        "cyclemlp_b2.untrained": CFG,
        "cyclemlp_b3.untrained": CFG,
        "cyclemlp_b4.untrained": CFG | {"crop_pct": 0.875},
        "cyclemlp_b5.untrained": CFG | {"crop_pct": 0.875},
    }
)


@register_model
def cyclemlp_b1(pretrained: bool = False, **kwargs) -> CycleMLP:
    """CycleMLP-B1: 10 blocks, 15 M parameters. `pretrained` must be False; `kwargs` are arguments of `CycleMLP`."""
    return create(CycleMLP, "cyclemlp_b1", pretrained, {"depths": (2, 2, 4, 2)}, kwargs)


@register_model
def cyclemlp_b2(pretrained: bool = False, **kwargs) -> CycleMLP:
    """CycleMLP-B2: 18 blocks, 27 M parameters. `pretrained` must be False; `kwargs` are arguments of `CycleMLP`."""
    return create(CycleMLP, "cyclemlp_b2", pretrained, {"depths": (2, 3, 10, 3)}, kwargs)


@register_model
def cyclemlp_b3(pretrained: bool = False, **kwargs) -> CycleMLP:
    """CycleMLP-B3: 28 blocks, 38 M parameters. `pretrained` must be False; `kwargs` are arguments of `CycleMLP`."""
    return create(CycleMLP, "cyclemlp_b3", pretrained, {"depths": (3, 4, 18, 3), "mlp_ratios": (8, 8, 4, 4)}, kwargs)


@register_model
def cyclemlp_b4(pretrained: bool = False, **kwargs) -> CycleMLP:
    """CycleMLP-B4: 41 blocks, 52 M parameters. `pretrained` must be False; `kwargs` are arguments of `CycleMLP`."""
    return create(CycleMLP, "cyclemlp_b4", pretrained, {"depths": (3, 8, 27, 3), "mlp_ratios": (8, 8, 4, 4)}, kwargs)


@register_model
def cyclemlp_b5(pretrained: bool = False, **kwargs) -> CycleMLP:
    """CycleMLP-B5: 34 blocks, 76 M parameters. `pretrained` must be False; `kwargs` are arguments of `CycleMLP`."""
    own = {"depths": (3, 4, 24, 3), "dims": (96, 192, 384, 768)}
    return create(CycleMLP, "cyclemlp_b5", pretrained, own, kwargs)
