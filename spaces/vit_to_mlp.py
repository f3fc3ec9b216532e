"""ViT teaches MLP: Swin-T to ResMLP-S12.

Published top-1 in %, the student alone, with KD and with OFA:

    CIFAR-100              alone   KD     OFA      ImageNet-1K            alone   KD     OFA
    swin_t-resmlp_s12      66.56  71.89  80.63    swin_t-resmlp_s12      76.65  76.67  77.31

python search/run.py --space spaces/vit_to_mlp.py               # digits, 2 cores, about 6 minutes
python search/run.py --space spaces/vit_to_mlp.py --data torch/cifar100 --data-dir DIR --gpus-per-trial 1 \\
    --set teacher_source=fit
python search/run.py --space spaces/vit_to_mlp.py --scale imagenet --data DIR --gpus-per-trial 1

The larger scales take GPU-days: --dry-run on the machine that shall train says how many.
"""

from search.study import Scale, Study
from spaces import parts

STUDY = Study(
    space=parts.search_ofa,
    first_guesses=parts.GUESSES,
    baselines=["scratch", "kd"],
    scales={
        "embedded": Scale(**parts.DIGITS, **parts.VIT_TEACHER, **parts.MLP_STUDENT),
        "cifar100": Scale(
            **parts.CIFAR100,
            pairs={
                "swin_t-resmlp_s12": {"teacher": "swin_tiny_patch4_window7_224", "student": "resmlp_12_224"},
            },
        ),
        "imagenet": Scale(
            **parts.IMAGENET,
            pairs={
                "swin_t-resmlp_s12": {"teacher": "swin_tiny_patch4_window7_224", "student": "resmlp_12_224"},
            },
        ),
    },
)
