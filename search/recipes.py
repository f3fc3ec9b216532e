"""Training recipes by scale and by the student's family, the paper's where it has one.

`cnn` is for batch-norm convolutional students (SGD), `token` for ViTs, MLPs and what else trains with AdamW. For
CIFAR-100 and ImageNet, at 224 pixels, the numbers are those of the paper's public configurations; `batch_size` is over
all workers. `epochs` is the length for which a recipe's warm-up and decay are meant.
"""

from typing import Any

_TOKEN_AUGMENTATION = {
    "color_jitter": 0.4,
    "aa": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "reprob": 0.25,
    "smoothing": 0.1,
    "train_interpolation": "bicubic",
}
_ADAMW = {"opt": "adamw", "lr": 5e-4, "weight_decay": 0.05, "warmup_epochs": 20, "warmup_lr": 5e-7, "clip_grad": 5.0}
_SGD = {"opt": "sgd", "momentum": 0.9, "warmup_epochs": 3, "warmup_lr": 1e-4, "smoothing": 0.1}
_SHORT = {"torchcompile": False}  # a few hundred steps a trial never make up for the half minute that it takes

RECIPES = {
    "embedded": {
        "cnn": {**_SGD, "epochs": 36, "lr": 0.05, "weight_decay": 1e-3, "batch_size": 32, "hflip": 0.0, **_SHORT},
        "token": {
            **_ADAMW,
            "epochs": 36,
            "lr": 2e-3,
            "batch_size": 32,
            "warmup_epochs": 4,
            "warmup_lr": 1e-5,
            "clip_grad": None,
            "smoothing": 0.1,
            "hflip": 0.0,  # a mirrored digit is another one
            **_SHORT,
        },
    },
    "cifar100": {
        "cnn": {**_SGD, "epochs": 300, "lr": 0.05, "weight_decay": 2e-3, "min_lr": 1e-3, "batch_size": 1024},
        "token": {**_ADAMW, **_TOKEN_AUGMENTATION, "epochs": 300, "min_lr": 1e-5, "batch_size": 1024},
    },
    "imagenet": {
        "cnn": {
            **_SGD,
            "epochs": 100,
            "lr": 0.1,
            "weight_decay": 1e-4,
            "sched": "step",
            "decay_epochs": 30,
            "batch_size": 512,
        },
        "token": {
            **_ADAMW,
            **_TOKEN_AUGMENTATION,
            "epochs": 300,
            "min_lr": 1e-6,
            "batch_size": 1024,
            "model_ema": True,
            "model_ema_decay": 0.99996,
        },
    },
}

# The teacher's own short recipe for `teacher_source=fit`, above the family's: fine-tuning takes a tenth of the rate.
TEACHER_RECIPES = {
    "embedded": {},
    "cifar100": {"lr": 5e-5, "epochs": 30, "warmup_epochs": 3, "batch_size": 256},
    "imagenet": {"lr": 5e-5, "epochs": 30, "warmup_epochs": 3, "batch_size": 256},
}


def family_recipe(
    recipes: str, family: str, epochs: int, full_epochs: int | None
) -> tuple[dict[str, Any], dict[str, int]]:
    """A family's recipe, its warm-up and decay shortened where a search runs shorter than the recipe.

    Args:
        recipes: the scale whose recipes hold.
        family: `cnn` or `token`.
        epochs: each trial's length.
        full_epochs: the recipe's full length; None takes the recipe's own.

    Returns:
        The recipe without `epochs`, and what was shortened at full length: `epochs`, `warmup_epochs`, `decay_epochs`.
    """
    recipe = dict(RECIPES[recipes][family])
    own = recipe.pop("epochs")
    full_length = {"epochs": full_epochs or own}
    for part in {"warmup_epochs", "decay_epochs"} & set(recipe):
        full_length[part] = recipe[part]
        recipe[part] = max(1, round(recipe[part] * min(1.0, epochs / full_length["epochs"])))
    return recipe, full_length
