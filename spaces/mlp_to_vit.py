"""MLP teaches ViT: Mixer-B/16 to DeiT-T, Swin-P and Swin-N.

Published top-1 in %, the student alone, with KD and with OFA (-: not known for certain):

    CIFAR-100              alone   KD     OFA      ImageNet-1K            alone   KD     OFA
    mixer_b-deit_t         68.00  71.36  73.90    mixer_b-deit_t             -      -  74.46
    mixer_b-swin_p         72.63  75.93  78.93    mixer_b-swin_n         75.53      -  76.63

python search/run.py --space spaces/mlp_to_vit.py               # digits, 2 cores, minutes
python search/run.py --space spaces/mlp_to_vit.py --data torch/cifar100 --data-dir DIR --gpus-per-trial 1 \\
    --set teacher_source=fit pair=mixer_b-swin_p
python search/run.py --space spaces/mlp_to_vit.py --scale imagenet --data DIR --gpus-per-trial 1 \\
    --set pair=mixer_b-swin_n

The larger scales take GPU-days: --dry-run on the machine that shall train says how many.
"""

from search.study import Scale, Study
from spaces import parts

STUDY = Study(
    space=parts.search_ofa,
    first_guesses=parts.GUESSES,
    baselines=["scratch", "kd"],
    scales={
        "embedded": Scale(**parts.DIGITS, **parts.MLP_TEACHER, **parts.VIT_STUDENT),
        "cifar100": Scale(
            **parts.CIFAR100,
            pairs={
                "mixer_b-deit_t": {"teacher": "mixer_b16_224", "student": "deit_tiny_patch16_224"},
                "mixer_b-swin_p": {"teacher": "mixer_b16_224", "student": "swin_pico"},
            },
        ),
        "imagenet": Scale(
            **parts.IMAGENET,
            pairs={
                "mixer_b-deit_t": {"teacher": "mixer_b16_224", "student": "deit_tiny_patch16_224"},
                "mixer_b-swin_n": {"teacher": "mixer_b16_224", "student": "swin_nano"},
            },
        ),
    },
)
