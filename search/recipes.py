"""Training recipes by scale and by the student's family, the paper's where it has one.

`cnn` is for batch-norm convolutional students (SGD), `token` for ViTs, MLPs and what else trains with AdamW. For
CIFAR-100 and ImageNet, at 224 pixels, the numbers are those of the paper's public configurations; `batch_size` is over
all workers.
"""

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

RECIPES = {
    "embedded": {
        "cnn": {**_SGD, "lr": 0.05, "weight_decay": 1e-3, "batch_size": 32, "hflip": 0.0},
        "token": {
            **_ADAMW,
            "lr": 2e-3,
            "batch_size": 50,
            "warmup_epochs": 4,
            "warmup_lr": 1e-5,
            "clip_grad": None,
            "smoothing": 0.1,
            "hflip": 0.0,  # a mirrored digit is another one
        },
    },
    "cifar100": {
        "cnn": {**_SGD, "lr": 0.05, "weight_decay": 2e-3, "min_lr": 1e-3, "batch_size": 1024},
        "token": {**_ADAMW, **_TOKEN_AUGMENTATION, "min_lr": 1e-5, "batch_size": 1024},
    },
    "imagenet": {
        "cnn": {**_SGD, "lr": 0.1, "weight_decay": 1e-4, "sched": "step", "decay_epochs": 30, "batch_size": 512},
        "token": {
            **_ADAMW,
            **_TOKEN_AUGMENTATION,
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
    "cifar100": {"lr": 5e-5, "epochs": 30, "warmup_epochs": 3},
    "imagenet": {"lr": 5e-5, "epochs": 30, "warmup_epochs": 3},
}
