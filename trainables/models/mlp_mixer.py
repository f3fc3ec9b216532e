"""MLP-Mixer at the size of small images; timm's own entry points fix patch size, width and depth."""

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import MlpMixer

CFG = {
    "input_size": (3, 16, 16),
    "num_classes": 1000,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "first_conv": "stem.proj",
    "classifier": "head",
}
default_cfgs = generate_default_cfgs({"mixer_nano.untrained": CFG})


@register_model
def mixer_nano(pretrained: bool = False, **kwargs) -> MlpMixer:
    """MLP-Mixer (Tolstikhin et al., 2021, arXiv 2105.01601): 8 blocks of width 64 on patches of 4 pixels, 0.28 M.

    The very class of timm's `mixer_b16_224`, so its weights load in a plain timm `MlpMixer` of these arguments. There
    are no pretrained weights.

    Args:
        pretrained: must be False.
        **kwargs: arguments of timm's `MlpMixer`, above this size's own.
    """
    own = {"img_size": 16, "patch_size": 4, "num_blocks": 8, "embed_dim": 64, "mlp_ratio": (0.5, 4.0)}
    features = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(MlpMixer, "mixer_nano", pretrained, feature_cfg=features, **{**own, **kwargs})
