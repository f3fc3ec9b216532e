"""What CycleMLP and Hire-MLP share: patches of 4 pixels, stages of blocks with a halving between, mean pooling."""

from collections.abc import Callable

import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import calculate_drop_path_rates
from timm.models import build_model_with_cfg, checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor

CFG = {
    "input_size": (3, 224, 224),
    "num_classes": 1000,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}


class Pyramid(nn.Module):
    """A hierarchical network with timm's interface, made of parts that a subclass hands in, all of them [B, C, H, W].

    The modules are named as in both official implementations: `patch_embed`, then `network`, whose even entries are
    the stages and whose odd entries halve the grid between them, `norm` and `head`.

    Args:
        embed: (channels in, channels out, kernel, stride, padding) to a module, for the patches and the halvings.
        block: (stage from 0, block within it from 0, stochastic depth rate) to a module that keeps its input's shape.
        norm: channels to the norm before pooling.
        depths: blocks, by stage.
        dims: channels, by stage.
        num_classes: logits; 0 for the pooled feature itself.
        in_chans: channels of the image.
        global_pool: "avg", or "" to pool nothing.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
    """

    def __init__(
        self,
        embed: Callable[[int, int, int, int, int], nn.Module],
        block: Callable[[int, int, float], nn.Module],
        norm: Callable[[int], nn.Module],
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = _checked(global_pool)
        self.num_features = self.head_hidden_size = dims[-1]
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**stage, "module": f"network.{2 * stage}"}
            for stage, dim in enumerate(dims)
        ]
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        self.patch_embed = embed(in_chans, dims[0], 7, 4, 2)
        network = []
        for stage, dim in enumerate(dims):
            if stage:
                network.append(embed(dims[stage - 1], dim, 3, 2, 1))
            network.append(nn.Sequential(*[block(stage, index, rate) for index, rate in enumerate(rates[stage])]))
        self.network = nn.ModuleList(network)
        self.norm = norm(self.num_features)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict:
        """Layers in order, for learning rates that decay from the last to the first."""
        blocks = r"^network\.(\d+)" if coarse else [(r"^network\.(\d+)\.(\d+)", None), (r"^network\.(\d+)", (0,))]
        return {"stem": r"^patch_embed", "blocks": [(blocks, None)] if coarse else blocks + [(r"^norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier of another number of classes, 0 for none."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = _checked(global_pool)
        weight = next(self.parameters())
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head = head.to(weight.device, weight.dtype).train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """What `forward_features` gives, and the stages' outputs before the halving that follows them.

        Args:
            x: [B, in_chans, H, W].
            indices: stages from 0; an integer n for the last n, None for all.
            norm: passes the last stage's output through the final norm.
            stop_early: ends at the last stage asked for.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: leaves the first of the two out.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt}: give NCHW or NHWC")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        count = len(self.network) // 2 + 1
        x, features = self.patch_embed(x), []
        for stage in range(min(last + 1, count) if stop_early else count):
            x = self._stage(x, stage)
            if stage in taken:
                feature = self.norm(x) if norm and stage == len(self.feature_info) - 1 else x
                features.append(feature if output_fmt == "NCHW" else feature.permute(0, 2, 3, 1))
        return features if intermediates_only else (self.norm(x), features)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what comes after the last stage asked for, and with it the norm and the classifier."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        ends_early = last < len(self.feature_info) - 1
        self.network = self.network[: 2 * last + 1]
        if ends_early:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or ends_early:
            self.norm = nn.Identity()
        if prune_head or ends_early:
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to the normed output of the last stage, [B, C, H / 32, W / 32]."""
        x = self.patch_embed(x)
        for stage in range(len(self.network) // 2 + 1):
            x = self._stage(x, stage)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The output of `forward_features` to [B, num_classes], or to what the classifier sees."""
        if self.global_pool:
            x = x.mean((2, 3))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def _stage(self, x: Tensor, stage: int) -> Tensor:
        if stage:
            x = self.network[2 * stage - 1](x)
        blocks = self.network[2 * stage]
        return checkpoint_seq(blocks, x) if self.grad_checkpointing and self.training else blocks(x)


def create(cls: type[Pyramid], name: str, pretrained: bool, own: dict, given: dict) -> Pyramid:
    """A registered model by timm's own builder: a size's own arguments, and above them those given."""
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    return build_model_with_cfg(cls, name, pretrained, feature_cfg=features, **{**own, **given})


def reweighted(h: Tensor, w: Tensor, c: Tensor, reweight: nn.Module, axes: tuple[int, int]) -> Tensor:
    """Split attention: the sum of three branches of one shape, each channel weighted by a softmax over the branches.

    Args:
        h: the branch along the height.
        w: the one along the width.
        c: the one in place.
        reweight: from the mean of the branches' sum over the image to C groups of a score for `h`, for `w`, for `c`.
        axes: height and width.
    """
    mean = (h + w + c).mean(axes, keepdim=True)
    scores = reweight(mean).flatten(1).unflatten(1, (-1, 3)).softmax(-1)
    of_h, of_w, of_c = (score.view_as(mean) for score in scores.unbind(-1))
    return h * of_h + w * of_w + c * of_c


def _checked(global_pool: str) -> str:
    if global_pool not in ("avg", ""):
        raise ValueError(f"global_pool={global_pool}: give avg, or an empty text to pool nothing")
    return global_pool
