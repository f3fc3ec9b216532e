"""ResMLP at the size of small images; timm's own entry points fix patch size, width and depth."""

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock

MEAN_STD = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SIZE = {"input_size": (3, 16, 16), "num_classes": 1000, "first_conv": "stem.proj", "classifier": "head"}
default_cfgs = generate_default_cfgs({"resmlp_nano.untrained": {**MEAN_STD, **SIZE}})


@register_model
def resmlp_nano(pretrained: bool = False, **kwargs) -> MlpMixer:
    """ResMLP (Touvron et al., 2021, arXiv 2105.03404) with 4 blocks of width 64 on patches of 4 pixels.

    The very class of timm's `resmlp_12_224`, so its weights load in a plain timm `MlpMixer` of these arguments. There
    are no pretrained weights.

    Args:
        pretrained: must be False.
        **kwargs: arguments of timm's `MlpMixer`, above this size's own.
    """
    own = {
        "img_size": 16,
        "patch_size": 4,
        "num_blocks": 4,
        "embed_dim": 64,
        "mlp_ratio": 4,
        "block_layer": ResBlock,
        "norm_layer": Affine,
    }
    return build_model_with_cfg(
        MlpMixer,
        "resmlp_nano",
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**own, **kwargs},
    )
