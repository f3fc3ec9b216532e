"""MLP teaches CNN: Mixer-B/16 to ResNet18 and MobileNetV2.

Published top-1 in %, the student alone, with KD and with OFA (-: not known for certain):

    CIFAR-100              alone   KD     OFA      ImageNet-1K            alone   KD     OFA
    mixer_b-resnet18       74.01  77.79  79.39    mixer_b-resnet18       69.75      -  71.38
    mixer_b-mobilenetv2    73.68  73.33  78.78    mixer_b-mobilenetv2        -      -  72.12

python search/run.py --space spaces/mlp_to_cnn.py               # digits, 2 cores, minutes
python search/run.py --space spaces/mlp_to_cnn.py --data torch/cifar100 --data-dir DIR --gpus-per-trial 1 \\
    --set teacher_source=fit pair=mixer_b-mobilenetv2
python search/run.py --space spaces/mlp_to_cnn.py --scale imagenet --data DIR --gpus-per-trial 1 \\
    --set pair=mixer_b-mobilenetv2

The larger scales take GPU-days: --dry-run on the machine that shall train says how many.
"""

from search.study import Scale, Study
from spaces import parts

STUDY = Study(
    space=parts.search_ofa,
    first_guesses=parts.GUESSES,
    baselines=["scratch", "kd"],
    scales={
        "embedded": Scale(**parts.DIGITS, **parts.MLP_TEACHER, **parts.CNN_STUDENT),
        "cifar100": Scale(
            **parts.CIFAR100,
            pairs={
                "mixer_b-resnet18": {
                    "teacher": "mixer_b16_224",
                    "student": "resnet18",
                    "lr": 0.1,  # the authors' own, above their published 0.05
                },
                "mixer_b-mobilenetv2": {"teacher": "mixer_b16_224", "student": "mobilenetv2_100"},
            },
        ),
        "imagenet": Scale(
            **parts.IMAGENET,
            pairs={
                "mixer_b-resnet18": {"teacher": "mixer_b16_224", "student": "resnet18"},
                "mixer_b-mobilenetv2": {"teacher": "mixer_b16_224", "student": "mobilenetv2_100"},
            },
        ),
    },
)
