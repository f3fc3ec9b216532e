"""Vision Permutator, an MLP that mixes tokens along height, along width and over channels (ViP).

Hou et al., "Vision Permutator: A Permutable MLP-Like Architecture for Visual Recognition", TPAMI 2022, arXiv
2106.12368. Written from the paper; the whole network works on [B, H, W, C].

Names in the state_dict are those of the authors' checkpoints; none was at hand to load, so only the names and shapes
are vouched for:

    patch_embed.proj                        the patches' convolution
    network.I.J.norm1, .norm2               block J of I, where a downsampling has an index of its own: ViP-S7 has
                                            blocks under 0, 2, 3, 4 and `network.1.proj`
    network.I.J.attn.mlp_h, .mlp_w, .mlp_c  the three branches, without bias
    network.I.J.attn.reweight.fc1, .fc2     the branches' weights; fc2's outputs go channel by channel, three each, in
                                            the order height, width, channel
    network.I.J.attn.proj                   the fused branches' projection
    network.I.J.mlp.fc1, .fc2               the channel MLP
    norm, head                              final norm and classifier

The image size decides how channels are split into segments and no weight's shape: weights of one size load at another,
but mean something else there.
"""

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, PatchEmbed, calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor

CFG = {
    "input_size": (3, 224, 224),
    "num_classes": 1000,
    "interpolation": "bicubic",
    "fixed_input_size": True,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
default_cfgs = generate_default_cfgs({"vip_s7.untrained": CFG, "vip_m7.untrained": CFG})


class PermuteMlp(nn.Module):
    """Three linear maps of each token grid, weighed against each other: along height, along width, over channels.

    Along the height, the channels are split into H segments of C / H. For one column and one segment, the H tokens'
    pieces make a vector of H * C / H = C numbers, which one linear map, shared by all columns and segments, mixes.
    Likewise along the width with W segments. The weights of the three results are a softmax for each channel, from
    their sum's mean over the grid (split attention).

    Args:
        dim: channels C, a multiple of both sides of the grid.
        proj_drop: dropout after the projection.
    """

    def __init__(self, dim: int, proj_drop: float = 0.0):
        super().__init__()
        self.mlp_h, self.mlp_w, self.mlp_c = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.reweight = Mlp(dim, dim // 4, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, H, W, C]."""
        high = _along_rows(x, self.mlp_h)
        wide = _along_rows(x.transpose(1, 2), self.mlp_w).transpose(1, 2)
        deep = self.mlp_c(x)
        weights = self.reweight((high + wide + deep).mean((1, 2)))  # [B, 3C]
        weights = weights.unflatten(-1, (-1, 3)).softmax(-1)[:, None, None]  # [B, 1, 1, C, 3]
        x = high * weights[..., 0] + wide * weights[..., 1] + deep * weights[..., 2]
        return self.proj_drop(self.proj(x))


def _along_rows(x: Tensor, mix: nn.Linear) -> Tensor:
    """[B, H, W, C] to the same, each column's H tokens mixed segment by segment of the channels, H of them."""
    height = x.shape[1]
    segments = x.unflatten(-1, (height, -1))  # [B, H, W, segment, C/H]
    vectors = segments.permute(0, 2, 3, 1, 4).flatten(-2)  # [B, W, segment, C]
    return mix(vectors).unflatten(-1, (height, -1)).permute(0, 3, 1, 2, 4).flatten(-2)


class Permutator(nn.Module):
    """Residual block of a `PermuteMlp` and a channel MLP, each after a LayerNorm; [B, H, W, C] to the same."""

    def __init__(self, dim: int, mlp_ratio: float, proj_drop: float = 0.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = PermuteMlp(dim, proj_drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Downsample(nn.Module):
    """[B, H, W, C] to [B, H/2, W/2, C'], a convolution of 2x2 patches."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class VisionPermutator(nn.Module):
    """ViP as a timm model: one feature a stage, and the interface of timm's own.

    Args:
        num_classes: logits; 0 for no classifier.
        img_size: pixels, the side or (height, width); fixed once built.
        in_chans: channels of the image.
        patch_size: pixels, the side.
        depths: blocks of each stage.
        embed_dims: channels of each stage; where they change, the grid is halved.
        mlp_ratio: hidden width of the channel MLP over the channels.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout in the blocks.
        drop_path_rate: stochastic depth of the last block, growing linearly up to it.
        global_pool: "avg", or "" for logits of every token.

    Raises:
        ValueError: a size that patches do not tile, a grid with an odd side where it is to be halved, or channels that
            do not split into as many segments as the grid has rows and columns.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        patch_size: int = 7,
        depths: tuple[int, ...] = (4, 3, 8, 3),
        embed_dims: tuple[int, ...] = (192, 384, 384, 384),
        mlp_ratio: float = 3.0,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        _check_grids(to_2tuple(img_size), patch_size, embed_dims)
        super().__init__()
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, global_pool
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dims[0], output_fmt="NHWC")
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        layers, self.stage_ends, self.feature_info, dim, reduction = [], [], [], embed_dims[0], patch_size
        for out_dim, stage_rates in zip(embed_dims, rates, strict=True):
            if out_dim != dim:
                layers.append(Downsample(dim, out_dim))
                dim, reduction = out_dim, 2 * reduction
            self.stage_ends.append(len(layers))
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"network.{len(layers)}"})
            layers.append(nn.Sequential(*[Permutator(dim, mlp_ratio, proj_drop_rate, rate) for rate in stage_rates]))
        self.network = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(_init_weights)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Regular expressions that group the parameters by depth, for timm's optimizers."""
        fine = [(r"^network\.(\d+)\.proj", (0,)), (r"^network\.(\d+)\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed", "blocks": r"^network\.(\d+)" if coarse else fine}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass instead of kept."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; 0 classes for none."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.to(self.patch_embed.proj.weight).train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """[B, 3, H, W] to the final feature, [B, h, w, C], and the stages', [B, C', h', w'] each.

        Args:
            indices: the last n stages for a number, those of a list, all for None.
            norm: put the final norm on the last stage's feature.
            stop_early: go no deeper than the last chosen stage.
            output_fmt: must be "NCHW".
            intermediates_only: give the list alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt}: features come as NCHW")
        taken, deepest = feature_take_indices(len(self.feature_info), indices)
        wanted, features = {self.stage_ends[stage] for stage in taken}, []
        x = self.patch_embed(x)
        for index, layer in enumerate(self.network[: self.stage_ends[deepest] + 1] if stop_early else self.network):
            x = self._run(layer, x)
            if index in wanted:
                feature = self.norm(x) if norm and index == self.stage_ends[-1] else x
                features.append(feature.permute(0, 3, 1, 2).contiguous())
        return features if intermediates_only else (self.norm(x), features)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Cuts off what is deeper than the chosen stages; gives their indices."""
        taken, deepest = feature_take_indices(len(self.feature_info), indices)
        self.network = self.network[: self.stage_ends[deepest] + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to the final feature, [B, h, w, C]."""
        x = self.patch_embed(x)
        for layer in self.network:
            x = self._run(layer, x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, h, w, C] to logits, [B, num_classes], or what the classifier would see."""
        x = self.head_drop(x.mean((1, 2)) if self.global_pool == "avg" else x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to logits, [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def _run(self, layer: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and isinstance(layer, nn.Sequential):
            return checkpoint_seq(layer, x)
        return layer(x)


@register_model
def vip_s7(pretrained: bool = False, **kwargs) -> VisionPermutator:
    """ViP-Small/7 (Hou et al., 2022), 25 M as published: 4 blocks of width 192, then 3, 8 and 3 of 384.

    Features at 224 pixels: [192, 32, 32], then three of [384, 16, 16]. An image's side is an even number of patches
    that divides 192: 14, 28, 42, 56, 84, 112, 168, 224 pixels and so on. There are no pretrained weights.

    Args:
        pretrained: must be False.
        **kwargs: arguments of `VisionPermutator`, above this size's own.
    """
    return _vip("vip_s7", pretrained, {"depths": (4, 3, 8, 3), "embed_dims": (192, 384, 384, 384)}, kwargs)


@register_model
def vip_m7(pretrained: bool = False, **kwargs) -> VisionPermutator:
    """ViP-Medium/7 (Hou et al., 2022), 55 M as published: 4 and 3 blocks of width 256, then 14 and 3 of 512.

    Features at 224 pixels: two of [256, 32, 32], two of [512, 16, 16]. An image's side is a power of two of patches:
    14, 28, 56, 112, 224 pixels and so on. Arguments as for `vip_s7`.
    """
    return _vip("vip_m7", pretrained, {"depths": (4, 3, 14, 3), "embed_dims": (256, 256, 512, 512)}, kwargs)


def _vip(name: str, pretrained: bool, own: dict, kwargs: dict) -> VisionPermutator:
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    return build_model_with_cfg(VisionPermutator, name, pretrained, feature_cfg=features, **{**own, **kwargs})


def _check_grids(img_size: tuple[int, int], patch_size: int, embed_dims: tuple[int, ...]) -> None:
    sizes = f"img_size={img_size[0]}x{img_size[1]}"
    if any(side % patch_size or side == 0 for side in img_size):
        raise ValueError(f"{sizes}: not a multiple of the patches' {patch_size} pixels")
    grid, before = [side // patch_size for side in img_size], embed_dims[0]
    for dim in embed_dims:
        if dim != before and any(side % 2 for side in grid):
            raise ValueError(f"{sizes}: a grid of {grid[0]}x{grid[1]} tokens cannot be halved")
        grid, before = [side // 2 for side in grid] if dim != before else grid, dim
        if any(dim % side for side in grid):
            raise ValueError(f"{sizes}: {dim} channels do not split along a grid of {grid[0]}x{grid[1]} tokens")


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
