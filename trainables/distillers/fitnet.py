"""FitNet: hints from intermediate features (Romero et al., ICLR 2015, arXiv 1412.6550)."""

from pydantic import Field

from trainables.distillers.base import STUDENT_FEATURES, TEACHER_FEATURES, Distiller, register
from trainables.fields import Range, Strict


class FitNetFields(Strict):
    """FitNet's own hyperparameter; the chosen `stages` are matched with the teacher's of the same number."""

    fitnet_loss_weight: float = Field(1.0, ge=0)  # the official OFA-KD code's; others use 100 on one stage


@register
class FitNet(Distiller):
    """Feature maps of the chosen stages, brought to a common shape, so that any two architectures can be compared.

    Without a stage that both models have, there is no such loss.
    """

    name = "fitnet"
    title = "FitNet (Romero et al., ICLR 2015), also across architectures"
    Fields = FitNetFields
    ranges = {"fitnet_loss_weight": Range(0.01, 100.0, log=True)}
    weights = {"fitnet": "fitnet_loss_weight"}
    needs = frozenset({STUDENT_FEATURES, TEACHER_FEATURES})
    stage_terms = frozenset({"fitnet"})

    def module(self, config, shapes):
        from trainables.losses.fitnet import Hints

        return Hints(shapes.student_features, shapes.teacher_features)

    def terms(self, config, step, module):
        if not module.regressors:  # no stage is chosen, or none that the teacher has
            return {}
        return {"fitnet": module(step.student.features, step.teacher.features)}
