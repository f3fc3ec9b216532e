"""DIST: relations instead of probabilities (Huang et al., NeurIPS 2022, arXiv 2205.10536)."""

from pydantic import Field

from trainables.distillers.base import Distiller, register
from trainables.fields import Range, Strict


class DISTFields(Strict):
    """DIST's own hyperparameters, the official OFA-KD code's (with T = 1)."""

    dist_beta: float = Field(1.0, ge=0)  # of the correlation over an image's classes
    dist_gamma: float = Field(1.0, ge=0)  # of the correlation over the batch, for each class


@register
class DIST(Distiller):
    """Student's and teacher's probabilities need not be equal, only correlated: over classes and over images."""

    name = "dist"
    title = "DIST (Huang et al., NeurIPS 2022)"
    Fields = DISTFields
    ranges = {
        "dist_beta": Range(0.5, 4.0, log=True),
        "dist_gamma": Range(0.5, 4.0, log=True),
        "temperature": Range(1.0, 8.0, log=True),
        "kd_loss_weight": Range(0.1, 2.0, log=True),
    }
    weights = {"kd": "kd_loss_weight"}
    common = frozenset({"temperature"})
    on_logits = True

    def terms(self, config, step, module):
        from trainables.losses.dist import dist_loss

        sides = step.student.logits, step.teacher.logits
        options = {"beta": config.dist_beta, "gamma": config.dist_gamma, "temperature": step.temperature}
        return {"kd": dist_loss(*sides, **options)}
