"""Which answers belong together: a hash of all that decides them, so that a wrong hit cannot happen."""

import hashlib
import json
from importlib.metadata import version
from typing import Any

from trainables.config import TrialConfig
from trainables.foreign import is_import_path, source_hash

# What of a recipe decides which pixels the models see, and beside which others (mixup) and in which order
AUGMENTATION = (
    "crop_scale", "crop_ratio", "hflip", "color_jitter", "aa", "reprob", "train_interpolation", "mixup", "cutmix",
    "mixup_prob", "mixup_switch_prob",
)  # fmt: skip
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")  # whose code makes the pixels and the logits


def stream_key(config: TrialConfig, images: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]) -> dict:
    """What decides the batches that the models see.

    Args:
        images: how many there are, and `ImageList.stamp`.
        mean, std: the normalisation in which they come.
    """
    return {
        "images": images,
        "img_size": config.img_size,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "mean": list(mean),
        "std": list(std),
        **config.model_dump(include=set(AUGMENTATION)),
    }


def teacher_key(config: TrialConfig, weights_sha256: str, device: str) -> dict:
    """What decides the teacher's answers to a batch, rounding included.

    Args:
        device: `cpu` or `cuda`.
    """
    return {
        "teacher": config.teacher,
        "teacher_kwargs": config.teacher_kwargs,
        "weights": weights_sha256,
        "code": source_hash(config.teacher, "teacher") if is_import_path(config.teacher) else None,
        "device": device,
        "amp": config.amp_dtype if config.amp else None,
        "channels_last": bool(config.channels_last),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def folder_name(parts: dict[str, Any]) -> str:
    """A folder's name for a key: 24 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
