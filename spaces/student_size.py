"""How small may the student be? An MLP's width and depth are searched with OFA-KD's own hyperparameters.

Two objectives, accuracy and the student's parameters: the result is the Pareto front, the best student of each size.

python search/run.py --space spaces/student_size.py                                   # digits, 2 cores, about 9 minutes
python search/run.py --space spaces/student_size.py --set objectives=top1,latency     # accuracy for milliseconds
python search/run.py --space spaces/student_size.py --scale cifar100 --data-dir DIR --gpus-per-trial 1 \\
    --set teacher_source=fit

Nothing is stopped early: a scheduler knows accuracy alone, and would leave the large ones only.
"""

from search.study import Scale, Study
from spaces import parts, vit_to_mlp


def space(trial):
    """OFA-KD's hyperparameters, and the size of an MLP-Mixer, timm's `MlpMixer`."""
    size = {
        "embed_dim": trial.suggest_categorical("embed_dim", [24, 32, 48, 64]),
        "num_blocks": trial.suggest_categorical("num_blocks", [4, 6, 8]),
    }
    return {**parts.search_ofa(trial), "student_kwargs": size}


EMBEDDED = vit_to_mlp.STUDY.scales["embedded"].fields | {"trials": 24}
LARGE = {
    "teacher": "swin_tiny_patch4_window7_224",
    "student": "timm.models.mlp_mixer:MlpMixer",  # the class: timm's named models let no size be given
    "search": {"embed_dim": "256|384|512", "num_blocks": "8|12"},  # 512 by 8 is Mixer-S/16
}

STUDY = Study(
    space=space,
    first_guesses=parts.GUESSES[1:2],
    baselines=["scratch", "kd"],
    scales={
        "embedded": Scale(**EMBEDDED),
        "cifar100": Scale(**parts.CIFAR100, **LARGE),
        "imagenet": Scale(**parts.IMAGENET, **LARGE),
    },
    fields={"objectives": ["val/top1", "cost/student_params"], "scheduler": "none"},
)
