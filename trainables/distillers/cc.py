"""CC: correlation congruence (Peng et al., ICCV 2019, arXiv 1904.01802)."""

from typing import Literal

from pydantic import Field

from trainables.distillers.base import STUDENT_EMBEDDING, TEACHER_EMBEDDING, Distiller, register
from trainables.fields import Range, Strict


class CCFields(Strict):
    """CC's own hyperparameters, those of the official OFA-KD code."""

    cc_loss_weight: float = Field(0.02, ge=0)
    cc_dim: int = Field(128, ge=1)  # width that both embeddings are brought to
    cc_form: Literal["adjacent", "kernel"] = "adjacent"  # as benchmarks compare, or the paper's printed equation


@register
class CC(Distiller):
    """How the images of a batch relate to one another, on the pooled embeddings."""

    name = "cc"
    title = "correlation congruence (Peng et al., ICCV 2019)"
    Fields = CCFields
    ranges = {"cc_loss_weight": Range(0.002, 2.0, log=True), "cc_form": Range(choices=("adjacent", "kernel"))}
    weights = {"cc": "cc_loss_weight"}
    needs = frozenset({STUDENT_EMBEDDING, TEACHER_EMBEDDING})

    def module(self, config, shapes):
        from trainables.losses.cc import Correlation

        return Correlation(shapes.student_embedding, shapes.teacher_embedding, config.cc_dim, config.cc_form)

    def terms(self, config, step, module):
        return {"cc": module(step.student.embedding, step.teacher.embedding)}
