"""CNN teaches CNN: ResNet34 to ResNet18, the usual homogeneous pair, to compare with.

python search/run.py --space spaces/resnet34_to_resnet18.py                            # digits, 2 cores, minutes
python search/run.py --space spaces/resnet34_to_resnet18.py --data torch/cifar100 --data-dir DIR --gpus-per-trial 1 \\
    --set teacher_source=fit
python search/run.py --space spaces/resnet34_to_resnet18.py --scale imagenet --data DIR --gpus-per-trial 1

The larger scales take GPU-days: --dry-run on the machine that shall train says how many.
"""

from search.study import Scale, Study
from spaces import parts

STUDY = Study(
    space=parts.search_ofa,
    first_guesses=parts.GUESSES,
    baselines=["scratch", "kd"],
    scales={
        "embedded": Scale(**parts.DIGITS, **parts.CNN_TEACHER, **parts.CNN_STUDENT),
        "cifar100": Scale(
            **parts.CIFAR100,
            teacher="resnet34.tv_in1k",
            student="resnet18",
            lr=0.1,  # the authors' own for ResNet18, above their published 0.05
        ),
        "imagenet": Scale(
            **parts.IMAGENET,
            teacher="resnet34.tv_in1k",  # the weights that comparisons of distillers usually take
            student="resnet18",
        ),
    },
)
