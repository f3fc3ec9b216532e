"""What the spaces of this folder share: the search function, its first guesses, each scale's settings, small models.

A space takes what it wants, `Scale(**parts.CIFAR100, teacher=...)`; its own fields may not repeat those.
"""

# ------------------------------------------------------------------------------------------------ what is searched


def search_ofa(trial):
    """OFA-KD's own hyperparameters; a stage's eps exists only where the stage is chosen."""
    stages = [stage for stage in (1, 2, 3, 4) if trial.suggest_categorical(f"stage{stage}", [True, False])]
    eps = trial.suggest_float("eps", 0.8, 2.5)
    if stages and trial.suggest_categorical("eps_per_stage", [False, True]):
        eps = [trial.suggest_float(f"eps_stage{stage}", 0.8, 2.5) for stage in stages] + [eps]
    return {
        "stages": stages,
        "eps": eps,
        "temperature": trial.suggest_float("temperature", 0.5, 8.0, log=True),
        "gt_loss_weight": trial.suggest_float("gt_loss_weight", 0.1, 1.0),
        "kd_loss_weight": trial.suggest_float("kd_loss_weight", 0.1, 2.0),
        "ofa_loss_weight": trial.suggest_float("ofa_loss_weight", 0.03, 2.0, log=True) if stages else 0.0,
    }


_ONES = {"temperature": 1.0, "gt_loss_weight": 1.0, "kd_loss_weight": 1.0}


def guess(eps: float, ofa_loss_weight: float) -> dict:
    """A first guess for `search_ofa`: all stages, one eps for them all, and the official values of the rest."""
    stages = {f"stage{stage}": True for stage in (1, 2, 3, 4)}
    return {**stages, "eps_per_stage": False, **_ONES, "eps": eps, "ofa_loss_weight": ofa_loss_weight}


GUESSES = [
    guess(eps=1.0, ofa_loss_weight=1.0),  # the official defaults
    guess(eps=1.0, ofa_loss_weight=0.1),  # the authors' own settings on CIFAR-100
    guess(eps=1.2, ofa_loss_weight=0.1),  # the middle of the paper's best eps, 1.1 to 1.4
    {"stage1": False, "stage2": False, "stage3": False, "stage4": False, **_ONES, "eps": 1.2},  # logits only
]

# ------------------------------------------------------------------------- scales, without the teacher and the student

DIGITS = {
    "data": "digits",
    "img_size": 16,
    "holdout": 0.28,
    "epochs": 36,
    "trials": 12,
    "finalists": 1,  # more would take more than the minutes that this scale is for
    "seeds": 3,
}
CIFAR100 = {
    "data": "torch/cifar100",  # the teacher's weights: --set teacher_source=checkpoint or fit
    "img_size": 224,
    "loader_workers": 8,
    "epochs": 60,  # a fifth of the paper's 300, so that a trial is affordable; train the best at full length
    "trials": 64,
}
IMAGENET = {
    "data": "imagenet",
    "teacher_source": "pretrained",
    "img_size": 224,
    "holdout": 0.02,
    "loader_workers": 12,
    "epochs": 30,  # a tenth of the paper's 300 for ViT and MLP students, 0.3 of its 100 for CNNs
    "trials": 32,
}

# ------------------------------------------------------------------------------- small models for the embedded scale

FITTED = {  # to all labels; from scratch, as these small models have no weights
    "teacher_source": "fit",
    "teacher_fit_from": "scratch",
    "teacher_recipe": {"epochs": 45, "batch_size": 48, "warmup_epochs": 4, "crop_scale": [0.6, 1.0]},
}
VIT_TEACHER = {
    "teacher": "vit_tiny_patch16_224",
    "teacher_kwargs": {
        "patch_size": 4,
        "embed_dim": 64,
        "depth": 6,
        "num_heads": 4,
        "class_token": False,
        "global_pool": "avg",
    },
    **FITTED,
}
CNN_TEACHER = {"teacher": "test_resnet", **FITTED}
MLP_TEACHER = {"teacher": "mixer_nano", **FITTED}

# A student sees few of the labels that the teacher has seen, under strong augmentation: that is what there is to gain.
FEW_LABELS = {"labels_per_class": 20, "recipe": {"batch_size": 20, "crop_scale": [0.3, 1.0], "mixup": 0.8}}
VIT_STUDENT = {
    "student": "deit_tiny_patch16_224",
    "student_kwargs": {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4},
    "labels_per_class": 40,
    "recipe": {"batch_size": 20, "crop_scale": [0.3, 1.0]},
}
CNN_STUDENT = {"student": "test_resnet", "student_kwargs": {"channels": (16, 24, 32, 48)}, **FEW_LABELS}
MLP_STUDENT = {"student": "mixer_nano", **FEW_LABELS}
