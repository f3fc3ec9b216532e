"""ViT teaches MLP: the paper's row Swin-T to ResMLP-S12.

Published top-1 for that row: CIFAR-100 80.63 with OFA, 71.89 with KD, 66.56 alone; ImageNet-1K 77.31, 76.67, 76.65.

python search/run.py --space spaces/vit_to_mlp.py                       # digits, 2 cores, about 3 minutes
python search/run.py --space spaces/vit_to_mlp.py --data torch/cifar100 --data-dir DIR --gpus-per-trial 1 \\
    --set teacher_source=fit
python search/run.py --space spaces/vit_to_mlp.py --scale imagenet --data DIR --gpus-per-trial 1

The larger scales take GPU-days: --dry-run on the machine that shall train says how many.
"""

from search.study import Scale, Study


def space(trial):
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


ALL_STAGES = {"stage1": True, "stage2": True, "stage3": True, "stage4": True, "eps_per_stage": False}
ONES = {"temperature": 1.0, "gt_loss_weight": 1.0, "kd_loss_weight": 1.0}

STUDY = Study(
    space=space,
    first_guesses=[
        {**ALL_STAGES, **ONES, "eps": 1.0, "ofa_loss_weight": 1.0},  # the official defaults
        {**ALL_STAGES, **ONES, "eps": 1.0, "ofa_loss_weight": 0.1},  # the authors' own settings on CIFAR-100
        {**ALL_STAGES, **ONES, "eps": 1.2, "ofa_loss_weight": 0.1},  # the middle of the paper's best eps, 1.1 to 1.4
        {"stage1": False, "stage2": False, "stage3": False, "stage4": False, **ONES, "eps": 1.2},  # logits only
    ],
    baselines=["scratch", "kd"],
    scales={
        "embedded": Scale(
            teacher="vit_tiny_patch16_224",
            teacher_source="fit",
            teacher_fit_from="scratch",
            teacher_kwargs={
                "patch_size": 4,
                "embed_dim": 64,
                "depth": 6,
                "num_heads": 4,
                "class_token": False,
                "global_pool": "avg",
            },
            teacher_recipe={"epochs": 45, "batch_size": 48, "warmup_epochs": 4, "crop_scale": [0.6, 1.0]},
            student="mixer_nano",
            data="digits",
            img_size=16,
            holdout=0.28,
            labels_per_class=20,  # the teacher has seen them all: that is what there is to gain
            recipe={"batch_size": 20, "crop_scale": [0.3, 1.0], "mixup": 0.8},
            epochs=36,
            grace_epochs=12,  # a third: the order of earlier epochs says little about the last one's
            trials=16,
        ),
        "cifar100": Scale(
            teacher="swin_tiny_patch4_window7_224",
            student="resmlp_12_224",  # the teacher's weights: --set teacher_source=checkpoint or fit
            data="torch/cifar100",
            img_size=224,
            loader_workers=8,
            epochs=60,  # a fifth of the paper's 300, so that a trial is affordable; train the best at full length
            grace_epochs=5,
            trials=64,
            recipe={"amp": True},
        ),
        "imagenet": Scale(
            teacher="swin_tiny_patch4_window7_224",
            teacher_source="pretrained",
            student="resmlp_12_224",
            data="imagenet",
            img_size=224,
            holdout=0.02,
            loader_workers=12,
            epochs=30,  # a tenth of the paper's 300
            grace_epochs=3,
            trials=32,
            recipe={"amp": True},
        ),
    },
)
