"""The frozen teacher: its logits, and its embedding and features where a distiller asks for them."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import torch

from trainables.build import build_model, normalization, pooled_embedding
from trainables.config import Recipe, TrialConfig
from trainables.distillers.base import TEACHER_EMBEDDING, TEACHER_FEATURES, TeacherOutput
from trainables.foreign import is_import_path, source_hash
from trainables.student import stages_of

WEIGHTS, ABOUT, HOLDOUT = "teacher.safetensors", "teacher.json", "holdout.npy"


class Teacher(torch.nn.Module):
    """A frozen model in evaluation mode that takes images in the student's normalisation.

    Args:
        model: the teacher; maps [B, 3, S, S] in its own normalisation to logits [B, C].
        mean, std: the student's, by channel; images arrive in it and are brought into the teacher's own.
        needs: what it gives besides logits: `TEACHER_EMBEDDING`, `TEACHER_FEATURES` (all its stages').
    """

    def __init__(
        self, model: torch.nn.Module, mean: tuple[float, ...], std: tuple[float, ...], needs: Collection[str] = ()
    ):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.needs = frozenset(needs) & {TEACHER_EMBEDDING, TEACHER_FEATURES}
        self.indices = stages_of(model) if TEACHER_FEATURES in self.needs else []
        own_mean, own_std = (torch.tensor(value).view(-1, 1, 1) for value in normalization(model))
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (mean, std))
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)

    def train(self, mode: bool = True):
        """Stays in evaluation mode, whatever the loop does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> TeacherOutput:
        """Images [B, 3, S, S] in the student's normalisation to logits [B, C] and what `needs` names, no gradients."""
        images = images * self.scale + self.shift
        if not self.needs:
            return TeacherOutput(self.model(images))
        final, features = self.model.forward_intermediates(images, indices=self.indices or 1)
        return TeacherOutput(
            self.model.forward_head(final),
            pooled_embedding(self.model, final) if TEACHER_EMBEDDING in self.needs else None,
            dict(enumerate(features, start=1)) if TEACHER_FEATURES in self.needs else {},
        )


def fit_config(config: TrialConfig, recipe: dict) -> TrialConfig:
    """The trial that fits the teacher to the data: the teacher as a student without a teacher, on all labels."""
    fields = config.model_dump()
    fields.update(
        student=config.teacher,
        student_source="pretrained" if config.teacher_fit_from == "pretrained" else "scratch",
        student_weights=None,
        student_kwargs=config.teacher_kwargs,
        taps="ofakd",
        labels_per_class=None,
        distiller="none",
        stages=[],
        eps=1.0,
        gt_loss_weight=1.0,
        logit_standardization=False,
        teacher_store="off",
        system_metrics=False,  # a teacher's epochs are kept nowhere
        curriculum_temperature=False,
        **Recipe(**recipe).model_dump(),  # all of it: nothing of the student's recipe remains
    )
    return TrialConfig(**fields)


def fingerprint(config: TrialConfig, recipe: dict, data_fingerprint: str) -> str:
    """A short hash of all that decides the teacher: its model, its weights' source, its recipe and its data."""
    parts = {
        "teacher": config.teacher,
        "kwargs": config.teacher_kwargs,
        "source": config.teacher_source,
        "weights": _file_stamp(config.teacher_weights),
        "data": data_fingerprint,
        "img_size": config.img_size,
    }
    if is_import_path(config.teacher):
        parts["code"] = source_hash(config.teacher, "teacher")
    if config.teacher_source == "fit":
        parts |= {"recipe": recipe, "seed": config.seed, "from": config.teacher_fit_from}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def build_teacher(config: TrialConfig, num_classes: int, weights: Path | None = None) -> torch.nn.Module:
    """The bare teacher model, with the study's own copy of its weights where that is given.

    Raises:
        InputError: as `build_model`, naming the field `teacher`.
    """
    source, path = ("checkpoint", str(weights)) if weights else (config.teacher_source, config.teacher_weights)
    return build_model(
        config.teacher,
        num_classes=num_classes,
        img_size=config.img_size,
        source="scratch" if source == "fit" else source,
        weights=path,
        kwargs=config.teacher_kwargs,
        field="teacher",
    )


def weights_hash(path: Path) -> str:
    """SHA-256 of the weights' file, as MLflow and `best.yaml` keep it."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def clearly_beats_chance(accuracy: float, images: int, classes: int) -> bool:
    """Whether an accuracy (percent) on so many images is above guessing by three standard errors and by half again."""
    chance = 100.0 / classes
    error = (chance * (100.0 - chance) / images) ** 0.5
    return accuracy > max(chance + 3 * error, 1.5 * chance)


def _file_stamp(path: str | None) -> str | None:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
