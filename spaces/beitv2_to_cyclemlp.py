"""ViT teaches MLP at full strength: BEiTv2-B to CycleMLP-B3, the paper's record for an MLP.

python search/run.py --space spaces/beitv2_to_cyclemlp.py                              # digits, 2 cores, minutes
python search/run.py --space spaces/beitv2_to_cyclemlp.py --data torch/cifar100 --data-dir DIR --gpus-per-trial 1 \\
    --set teacher_source=fit
python search/run.py --space spaces/beitv2_to_cyclemlp.py --scale imagenet --data DIR --gpus-per-trial 1

Other students: --set student=cyclemlp_b1 (to cyclemlp_b5), hire_mlp_small, vip_s7. The larger scales take GPU-weeks:
--dry-run on the machine that shall train says how many.
"""

from search.study import Scale, Study
from spaces import parts

PAIR = {"teacher": "beitv2_base_patch16_224", "student": "cyclemlp_b3"}

STUDY = Study(
    space=parts.search_ofa,
    first_guesses=parts.GUESSES,
    baselines=["scratch", "kd"],
    scales={
        "embedded": Scale(
            **parts.DIGITS,
            **parts.FITTED,
            **parts.FEW_LABELS,
            teacher="beitv2_base_patch16_224",
            teacher_kwargs={"patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4},
            student="cyclemlp_b1",
            student_kwargs={"depths": (1, 1, 2, 1), "dims": (32, 48, 64, 96)},
        ),
        "cifar100": Scale(**parts.CIFAR100, **PAIR),
        "imagenet": Scale(**parts.IMAGENET, **PAIR),
    },
)
