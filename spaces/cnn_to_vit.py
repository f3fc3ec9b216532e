"""CNN teaches ViT: ConvNeXt-T and ResNet50 to DeiT-T, Swin-P and Swin-N.

Published top-1 in %, the student alone, with KD and with OFA (-: not known for certain):

    CIFAR-100              alone   KD     OFA      ImageNet-1K            alone   KD     OFA
    convnext_t-deit_t      68.00  72.99  75.76    resnet50-deit_t            -      -  76.55
    convnext_t-swin_p      72.63  76.44  78.32    convnext_t-deit_t          -  74.00  74.41
                                                  resnet50-swin_n        75.53      -  78.64
                                                  convnext_t-swin_n      75.53      -  77.50

python search/run.py --space spaces/cnn_to_vit.py               # digits, 2 cores, minutes
python search/run.py --space spaces/cnn_to_vit.py --data torch/cifar100 --data-dir DIR --gpus-per-trial 1 \\
    --set teacher_source=fit pair=convnext_t-swin_p
python search/run.py --space spaces/cnn_to_vit.py --scale imagenet --data DIR --gpus-per-trial 1 \\
    --set pair=convnext_t-swin_n

The larger scales take GPU-days: --dry-run on the machine that shall train says how many.
"""

from search.study import Scale, Study
from spaces import parts

STUDY = Study(
    space=parts.search_ofa,
    first_guesses=parts.GUESSES,
    baselines=["scratch", "kd"],
    scales={
        "embedded": Scale(**parts.DIGITS, **parts.CNN_TEACHER, **parts.VIT_STUDENT),
        "cifar100": Scale(
            **parts.CIFAR100,
            pairs={
                "convnext_t-deit_t": {"teacher": "convnext_tiny.fb_in1k", "student": "deit_tiny_patch16_224"},
                "convnext_t-swin_p": {"teacher": "convnext_tiny.fb_in1k", "student": "swin_pico"},
            },
        ),
        "imagenet": Scale(
            **parts.IMAGENET,
            pairs={
                "resnet50-deit_t": {"teacher": "resnet50", "student": "deit_tiny_patch16_224"},
                "convnext_t-deit_t": {"teacher": "convnext_tiny.fb_in1k", "student": "deit_tiny_patch16_224"},
                "resnet50-swin_n": {"teacher": "resnet50", "student": "swin_nano"},
                "convnext_t-swin_n": {"teacher": "convnext_tiny.fb_in1k", "student": "swin_nano"},
            },
        ),
    },
)
