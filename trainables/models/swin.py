"""Swin-Pico and Swin-Nano, the OFA-KD paper's own small Swin students; timm has none smaller than Swin-T."""

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn

CFG = {
    "input_size": (3, 224, 224),
    "num_classes": 1000,
    "pool_size": (7, 7),
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "fixed_input_size": True,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "patch_embed.proj",
    "classifier": "head.fc",
}
default_cfgs = generate_default_cfgs({"swin_pico.untrained": CFG, "swin_nano.untrained": CFG})


@register_model
def swin_pico(pretrained: bool = False, **kwargs) -> SwinTransformer:
    """Swin-Pico (Hao et al., NeurIPS 2023, arXiv 2310.19444): width 48, two blocks a stage, 5.51 M.

    The very class of timm's `swin_tiny_patch4_window7_224` (Liu et al., 2021, arXiv 2103.14030), so its weights load in
    a plain timm `SwinTransformer` of these arguments. Features at 224 pixels: [48, 56, 56], [96, 28, 28], [192, 14,
    14], [384, 7, 7]. There are no pretrained weights, and 5.51 M (1000 classes) is counted here, not published.

    Args:
        pretrained: must be False.
        **kwargs: arguments of timm's `SwinTransformer`, above this size's own.
    """
    return _swin("swin_pico", pretrained, 48, kwargs)


@register_model
def swin_nano(pretrained: bool = False, **kwargs) -> SwinTransformer:
    """Swin-Nano (Hao et al., NeurIPS 2023, arXiv 2310.19444): width 64, two blocks a stage, 9.6 M as published.

    As `swin_pico` but for the width. Features at 224 pixels: [64, 56, 56], [128, 28, 28], [256, 14, 14], [512, 7, 7].

    Args:
        pretrained: must be False.
        **kwargs: arguments of timm's `SwinTransformer`, above this size's own.
    """
    return _swin("swin_nano", pretrained, 64, kwargs)


def _swin(name: str, pretrained: bool, width: int, kwargs: dict) -> SwinTransformer:
    own = {"patch_size": 4, "window_size": 7, "embed_dim": width, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)}
    arguments = {**own, **kwargs}
    features = {"flatten_sequential": True, "out_indices": tuple(range(len(arguments["depths"])))}
    return build_model_with_cfg(
        SwinTransformer,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=features,
        **arguments,
    )
