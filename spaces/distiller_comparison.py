"""All distillers on one pair, the one of vit_to_mlp: each at its defaults first, then each in its own ranges.

python search/run.py --space spaces/distiller_comparison.py                     # digits, 2 cores, about 7 minutes
python search/run.py --space spaces/distiller_comparison.py --set 'search.distiller=kd|ofa|ofa+rsd'   # some of them
python search/run.py --space spaces/distiller_comparison.py --set search.distiller=rsd --trials 32    # one of them

Which distiller a trial has is searched like all else, and what else it has depends on it. Nothing is stopped early, so
that each has its defaults' result at full length; --set scheduler=asha stops the weak.
"""

from search.study import Scale, Study
from spaces import vit_to_mlp
from trainables.config import Distillation
from trainables.distillers import DISTILLERS, distillers_of, suggest

NAMES = [*(name for name in DISTILLERS if name != "none"), "ofa+rsd", "ofa+fitnet"]


def space(trial):
    """A distiller, its hyperparameters, and the weight of the labels beside it; all stages where it has any."""
    name = trial.suggest_categorical("distiller", NAMES)
    return {**suggest(trial, name), "gt_loss_weight": trial.suggest_float("gt_loss_weight", 0.1, 1.0)}


def at_defaults(name: str) -> dict:
    """The first guess that gives a distiller each hyperparameter's declared default."""
    fields = {field for one in distillers_of(name) for field in one.ranges}
    defaults = {f"{field}@{name}": Distillation.model_fields[field].default for field in sorted(fields)}
    return {"distiller": name, "gt_loss_weight": 1.0, **defaults}


STUDY = Study(
    space=space,
    first_guesses=[at_defaults(name) for name in NAMES],
    scales={
        name: Scale(scale.pairs, **{**scale.fields, "trials": 2 * len(NAMES)})
        for name, scale in vit_to_mlp.STUDY.scales.items()
    },
    fields={"scheduler": "none"},
)
