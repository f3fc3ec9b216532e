"""ViT teaches CNN: Swin-T, ViT-S and DeiT-T to ResNet18 and MobileNetV2.

Published top-1 in %, the student alone, with KD and with OFA (-: not known for certain):

    CIFAR-100              alone   KD     OFA      ImageNet-1K            alone   KD     OFA
    swin_t-resnet18        74.01  78.74  80.54    deit_t-resnet18        69.75      -  71.34
    vit_s-resnet18         74.01  77.26  80.15    swin_t-resnet18        69.75  71.14  71.85
    swin_t-mobilenetv2     73.68  74.68  80.98    deit_t-mobilenetv2         -      -  71.39
    vit_s-mobilenetv2      73.68  72.77  78.45    swin_t-mobilenetv2         -      -  72.32

python search/run.py --space spaces/vit_to_cnn.py               # digits, 2 cores, minutes
python search/run.py --space spaces/vit_to_cnn.py --data torch/cifar100 --data-dir DIR --gpus-per-trial 1 \\
    --set teacher_source=fit pair=vit_s-mobilenetv2
python search/run.py --space spaces/vit_to_cnn.py --scale imagenet --data DIR --gpus-per-trial 1 \\
    --set pair=swin_t-mobilenetv2

The larger scales take GPU-days: --dry-run on the machine that shall train says how many.
"""

from search.study import Scale, Study
from spaces import parts

STUDY = Study(
    space=parts.search_ofa,
    first_guesses=parts.GUESSES,
    baselines=["scratch", "kd"],
    scales={
        "embedded": Scale(**parts.DIGITS, **parts.VIT_TEACHER, **parts.CNN_STUDENT),
        "cifar100": Scale(
            **parts.CIFAR100,
            pairs={
                "swin_t-resnet18": {
                    "teacher": "swin_tiny_patch4_window7_224",
                    "student": "resnet18",
                    "lr": 0.1,  # the authors' own, above their published 0.05
                },
                "vit_s-resnet18": {
                    "teacher": "vit_small_patch16_224",
                    "student": "resnet18",
                    "lr": 0.1,  # the authors' own, above their published 0.05
                },
                "swin_t-mobilenetv2": {"teacher": "swin_tiny_patch4_window7_224", "student": "mobilenetv2_100"},
                "vit_s-mobilenetv2": {"teacher": "vit_small_patch16_224", "student": "mobilenetv2_100"},
            },
        ),
        "imagenet": Scale(
            **parts.IMAGENET,
            pairs={
                "deit_t-resnet18": {
                    "teacher": "deit_tiny_patch16_224",
                    "student": "resnet18",
                    "first_guesses": [
                        parts.guess(eps=1.5, ofa_loss_weight=1.0),
                        *parts.GUESSES,
                    ],  # the authors' own eps
                },
                "swin_t-resnet18": {"teacher": "swin_tiny_patch4_window7_224", "student": "resnet18"},
                "deit_t-mobilenetv2": {"teacher": "deit_tiny_patch16_224", "student": "mobilenetv2_100"},
                "swin_t-mobilenetv2": {"teacher": "swin_tiny_patch4_window7_224", "student": "mobilenetv2_100"},
            },
        ),
    },
)
