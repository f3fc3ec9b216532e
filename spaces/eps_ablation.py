"""What eps does: one trial for each value, trained to the end, for any pair of the paper; all else stays as it is.

As the paper's ablation of its gamma, which found the best value between 1.1 and 1.4, another one for each pair.

python search/run.py --space spaces/eps_ablation.py                                    # digits, ViT teaches MLP
python search/run.py --space spaces/eps_ablation.py --set pair=cnn_to_vit              # another direction
python search/run.py --space spaces/eps_ablation.py --set 'search.eps=1.0|1.5|4.0'     # other values
python search/run.py --space spaces/eps_ablation.py --scale imagenet --data DIR --gpus-per-trial 1 \\
    --set pair=convnext_t-deit_t

At the larger scales the pairs are those of the six directions' own files.
"""

from search.study import SCALES, Scale, Study
from spaces import cnn_to_mlp, cnn_to_vit, mlp_to_cnn, mlp_to_vit, vit_to_cnn, vit_to_mlp

EPS = (0.8, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 2.0, 3.0)
DIRECTIONS = (vit_to_mlp, vit_to_cnn, cnn_to_vit, cnn_to_mlp, mlp_to_cnn, mlp_to_vit)
CNN_STUDENTS = (vit_to_cnn, mlp_to_cnn)


def space(trial):
    """One eps for all stages and the logits."""
    return {"eps": trial.suggest_categorical("eps", EPS)}


def pairs(scale: str) -> dict:
    """All directions' pairs with their own settings; the embedded ones, one a direction, go by its name."""
    found = {}
    for direction in DIRECTIONS:
        own = direction.STUDY.scales[scale]
        for name, fields in (own.pairs or {direction.__name__.split(".")[-1]: {}}).items():
            found[name] = {**own.fields, **fields, "first_guesses": [], "trials": len(EPS)}
            if scale == "cifar100" and direction in CNN_STUDENTS:
                found[name]["ofa_loss_weight"] = 0.1  # the authors' own there
    return found


STUDY = Study(
    space=space,
    scales={scale: Scale(pairs=pairs(scale)) for scale in SCALES},
    fields={"sampler": "grid", "scheduler": "none"},
)
