"""A trial's recipe in the words of timm's train.py, which the official OFA-KD script has too."""

from typing import Any

from search.exporters.base import Source
from trainables.config import TrialConfig

RENAMED = {"crop_scale": "scale", "crop_ratio": "ratio"}
RECIPE = (
    "epochs", "batch_size", "opt", "lr", "momentum", "weight_decay", "sched", "min_lr", "warmup_lr", "warmup_epochs",
    "decay_epochs", "decay_rate", "clip_grad", "smoothing", "mixup", "cutmix", "mixup_prob", "mixup_switch_prob",
    "crop_scale", "crop_ratio", "hflip", "color_jitter", "aa", "reprob", "train_interpolation", "bce_loss", "drop",
    "drop_path", "model_ema", "model_ema_decay", "seed",
)  # fmt: skip
UNREAD = {  # by trainers that know nothing of our projectors or schedules
    "projector": "it has no projectors",
    "projector_lr_scale": "one learning rate for all parameters",
    "projector_weight_decay_scale": "one weight decay for all parameters",
    "sched_restarts": "its schedule runs through once",
}
BATCH = "the batch over all GPUs: divide it by their number"
JUDGED = (
    "Accuracies may differ: a trial judges images of at most 64 pixels, or the trial's size, whole, and the target all "
    "of them by one crop."
)


def refusals(config: TrialConfig) -> list[str]:
    """What of a recipe neither of the train.py's does, though it has keys for it."""
    problems = []
    if config.bce_loss and not (config.smoothing or config.mixup or config.cutmix):
        problems.append("bce_loss: train.py reads it only with smoothing, mixup or cutmix")
    if config.curriculum_temperature:
        problems.append("curriculum_temperature: train.py's temperature is fixed")
    return problems


def bounded(source: Source) -> dict[str, Any]:
    """The fields that our own loop bounds by others, as it takes them."""
    config = source.config
    return {
        "batch_size": min(config.batch_size, source.train_images // 2 * 2),
        "warmup_epochs": min(config.warmup_epochs, config.epochs - 1),
        "warmup_lr": min(config.warmup_lr, config.lr),
        "min_lr": min(config.min_lr, config.lr),
    }


def recipe_keys(source: Source) -> tuple[dict[str, Any], dict[str, str]]:
    """The recipe by train.py's keys, and by field of ours which key has it."""
    config, keys, exact = source.config, {}, {}
    for name in RECIPE:
        key = RENAMED.get(name, name)
        keys[key], exact[name] = getattr(config, name), f"`{key}`"
    keys |= bounded(source)
    keys["drop"] = config.drop or 0.0  # train.py hands it on as it is, and some models take no None
    exact["batch_size"] += f", {BATCH}"
    return keys, exact


def own_models(source: Source) -> list[str]:
    """Why a trainer that knows timm's models alone cannot build both of these."""
    from trainables.foreign import is_import_path
    from trainables.models import is_ours

    problems = []
    for role in ("student", "teacher") if source.config.distiller != "none" else ("student",):
        name = getattr(source.config, role)
        if is_import_path(name) or is_ours(name):
            problems.append(f"{role}: {name} is no model of timm's own, and train.py knows no other")
    return problems


def model_arguments(source: Source, role: str) -> dict[str, Any]:
    """What `timm.create_model` needs besides a name and the class count, to build a model for the trial's image size.

    Raises:
        InputError: timm alone cannot build it for that size.
    """
    from trainables.build import build_model
    from trainables.errors import InputError

    config = source.config
    name, kwargs = getattr(config, role), dict(getattr(config, f"{role}_kwargs"))
    model = build_model(name, num_classes=len(source.classes), img_size=config.img_size, kwargs=kwargs, field=role)
    if hasattr(model, "own_size"):
        raise InputError(
            f"{role}: {name} takes images of {model.own_size[0]} pixels only, and was given {config.img_size} by "
            "resizing them inside, which the target cannot"
        )
    return ({"img_size": config.img_size} | kwargs) if _takes_size(name, kwargs, source) else kwargs


def shown_whole(config: TrialConfig) -> bool:
    """Whether our own evaluation shows a trial's images whole, where timm's shows the centre."""
    from trainables.stream import SMALL_SIDE

    return config.img_size <= SMALL_SIDE


def hub_config(source: Source, role: str) -> dict[str, Any]:
    """A model's `config.json`, with which `timm.create_model("local-dir:…")` and model hubs load it.

    Raises:
        InputError: as `model_arguments`.
    """
    from trainables.build import build_model, normalization

    config = source.config
    name, kwargs, size = getattr(config, role), getattr(config, f"{role}_kwargs"), config.img_size
    model = build_model(name, num_classes=len(source.classes), img_size=size, kwargs=kwargs, field=role)
    mean, std = normalization(model)
    return {
        "architecture": name.partition(".")[0],
        "num_classes": len(source.classes),
        "model_args": model_arguments(source, role),
        "pretrained_cfg": {"input_size": [3, size, size], "mean": list(mean), "std": list(std)},
    }


def _takes_size(name: str, kwargs: dict[str, Any], source: Source) -> bool:
    import timm
    import torch

    try:
        with torch.random.fork_rng():
            timm.create_model(name, num_classes=len(source.classes), img_size=source.config.img_size, **kwargs)
    except TypeError:
        return False
    return True
