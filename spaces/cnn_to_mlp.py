"""CNN teaches MLP: ConvNeXt-T and ResNet50 to ResMLP-S12.

Published top-1 in %, the student alone, with KD and with OFA (-: not known for certain):

    CIFAR-100              alone   KD     OFA      ImageNet-1K            alone   KD     OFA
    convnext_t-resmlp_s12  66.56  72.25  81.22    resnet50-resmlp_s12    76.65      -  78.53
                                                  convnext_t-resmlp_s12  76.65      -  77.53

python search/run.py --space spaces/cnn_to_mlp.py               # digits, 2 cores, minutes
python search/run.py --space spaces/cnn_to_mlp.py --data torch/cifar100 --data-dir DIR --gpus-per-trial 1 \\
    --set teacher_source=fit
python search/run.py --space spaces/cnn_to_mlp.py --scale imagenet --data DIR --gpus-per-trial 1 \\
    --set pair=convnext_t-resmlp_s12

The larger scales take GPU-days: --dry-run on the machine that shall train says how many.
"""

from search.study import Scale, Study
from spaces import parts

STUDY = Study(
    space=parts.search_ofa,
    first_guesses=parts.GUESSES,
    baselines=["scratch", "kd"],
    scales={
        "embedded": Scale(**parts.DIGITS, **parts.CNN_TEACHER, **parts.MLP_STUDENT),
        "cifar100": Scale(
            **parts.CIFAR100,
            pairs={
                "convnext_t-resmlp_s12": {"teacher": "convnext_tiny.fb_in1k", "student": "resmlp_12_224"},
            },
        ),
        "imagenet": Scale(
            **parts.IMAGENET,
            pairs={
                "resnet50-resmlp_s12": {"teacher": "resnet50", "student": "resmlp_12_224"},
                "convnext_t-resmlp_s12": {"teacher": "convnext_tiny.fb_in1k", "student": "resmlp_12_224"},
            },
        ),
    },
)
