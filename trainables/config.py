"""What a trial needs to know, as validated plain data. Imports no torch, so that spaces and commands stay light.

The fields are flat and carry the names that the command line, MLflow and `best.yaml` show; recipe fields have the
names of timm's train.py (but `crop_scale` and `crop_ratio`, since `scale` is the study's).
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Source = Literal["scratch", "pretrained", "checkpoint"]
Taps = Literal["ofakd", "even"] | list[int] | list[str]


class Strict(BaseModel):
    """No unknown field, no silent conversion, no NaN; immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataFields(Strict):
    """Which images, and who sees which of them."""

    data: str = "digits"  # digits | torch/NAME | hfds/NAME | a folder of class folders or of Fashion-MNIST idx files
    data_dir: str | None = None  # where named data sets lie
    img_size: int = Field(224, ge=8)  # pixels, the square side both models get
    holdout: float = Field(0.1, gt=0, lt=0.9)  # share of the training split that ranks trials
    labels_per_class: int | None = Field(None, ge=1)  # the student's training images a class; None: all
    max_images: int | None = Field(None, ge=2)  # cap on each split, for smoke runs
    loader_workers: int = Field(0, ge=0)  # processes that decode and augment, a worker
    data_seed: int = 0  # draws the holdout and the label budget


class TeacherFields(Strict):
    """The frozen model that is imitated."""

    teacher: str  # timm's name, or package.module:factory
    teacher_source: Literal["fit", "pretrained", "checkpoint"] = "pretrained"
    teacher_weights: str | None = None  # the checkpoint's path
    teacher_fit_from: Literal["auto", "pretrained", "scratch"] = (
        "auto"  # where `fit` starts; auto: pretrained if at hand
    )
    teacher_kwargs: dict[str, Any] = {}  # further arguments of timm.create_model or the factory

    @model_validator(mode="after")
    def _weights_belong_to_a_checkpoint(self):
        if (self.teacher_source == "checkpoint") != (self.teacher_weights is not None):
            raise ValueError("teacher_weights (a path) and teacher_source='checkpoint' go together")
        return self


class StudentFields(Strict):
    """The trained model and where its features are tapped."""

    student: str  # timm's name, or package.module:factory
    student_source: Source = "scratch"
    student_weights: str | None = None  # the checkpoint's path
    student_kwargs: dict[str, Any] = {}  # further arguments of timm.create_model or the factory
    taps: Taps = "ofakd"  # which features are stages 1 to 4: by rule, or timm's indices, or modules' names

    @field_validator("taps", mode="before")
    @classmethod
    def _taps_are_a_rule_or_of_one_kind(cls, taps):
        listed = isinstance(taps, list) and {type(tap) for tap in taps} in (set(), {int}, {str})
        if not listed and taps not in ("ofakd", "even"):
            raise ValueError("must be ofakd, even, or a list of indices or of modules' names, as [layer1]")
        return taps

    @model_validator(mode="after")
    def _weights_belong_to_a_checkpoint(self):
        if (self.student_source == "checkpoint") != (self.student_weights is not None):
            raise ValueError("student_weights (a path) and student_source='checkpoint' go together")
        return self


class Distillation(Strict):
    """OFA-KD's own hyperparameters: the loss is gt * CE + kd * OFA(logits) + ofa * sum over stages of OFA(stage)."""

    distiller: Literal["ofa", "kd", "none"] = "ofa"
    stages: list[int] = [1, 2, 3, 4]
    eps: float | list[float] = 1.0  # one, or one per stage in the order of `stages` and one for the logits
    temperature: float = Field(1.0, gt=0)
    gt_loss_weight: float = Field(1.0, ge=0)
    kd_loss_weight: float = Field(1.0, ge=0)
    ofa_loss_weight: float = Field(1.0, ge=0)
    enhance: Literal["all", "target"] = "all"  # the official code's form, or the paper's printed equation
    temperature_squared: bool = False  # multiply the distillation terms by T², so that T leaves gradients' scale alone
    normalize_loss_weights: bool = False  # divide the three weights by their sum
    projector: Literal["auto", "conv", "token", "pooled"] = "auto"  # the official ones by the student, or a light one

    @field_validator("stages")
    @classmethod
    def _stages_are_one_to_four(cls, stages):
        if sorted(set(stages)) != stages or not set(stages) <= {1, 2, 3, 4}:
            raise ValueError("stages must be distinct, ascending and among 1, 2, 3, 4")
        return stages

    @field_validator("eps")
    @classmethod
    def _eps_is_positive(cls, eps):
        if any(value <= 0 for value in (eps if isinstance(eps, list) else [eps])):
            raise ValueError("eps must be above 0")
        return eps

    @model_validator(mode="after")
    def _eps_fits_the_stages(self):
        if isinstance(self.eps, list) and len(self.eps) not in (1, len(self.stages) + 1):
            raise ValueError(
                f"eps has {len(self.eps)} values for stages {self.stages}: give one, or {len(self.stages) + 1} "
                "(one per stage and one for the logits)"
            )
        if self.gt_loss_weight + self.kd_loss_weight + self.ofa_loss_weight == 0:
            raise ValueError("gt_loss_weight, kd_loss_weight and ofa_loss_weight must not all be 0")
        return self


class Recipe(Strict):
    """How a model is trained; names and meanings of timm's train.py."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(128, ge=2)  # images a step over all workers together
    opt: str = "adamw"
    lr: float = Field(5e-4, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.05, ge=0)
    projector_lr_scale: float = Field(1.0, gt=0)  # the projectors' learning rate over the student's
    projector_weight_decay_scale: float = Field(1.0, ge=0)
    sched: Literal["cosine", "tanh", "poly", "step"] = "cosine"
    min_lr: float = Field(1e-5, ge=0)  # at most `lr`, as `warmup_lr` is
    warmup_lr: float = Field(5e-7, ge=0)
    warmup_epochs: int = Field(0, ge=0)
    decay_epochs: int = Field(30, ge=1)  # step schedule
    decay_rate: float = Field(0.1, gt=0)
    clip_grad: float | None = Field(None, gt=0)  # largest norm of the gradient
    smoothing: float = Field(0.0, ge=0, lt=1)
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    mixup_prob: float = Field(1.0, ge=0, le=1)
    mixup_switch_prob: float = Field(0.5, ge=0, le=1)
    crop_scale: list[float] = Field([0.08, 1.0], min_length=2, max_length=2)  # timm's `scale`, shares of the area
    crop_ratio: list[float] = Field([0.75, 4 / 3], min_length=2, max_length=2)  # timm's `ratio`, of its sides
    hflip: float = Field(0.5, ge=0, le=1)
    color_jitter: float | None = Field(None, ge=0)
    aa: str | None = None  # timm's auto-augment string
    reprob: float = Field(0.0, ge=0, le=1)  # random erasing
    train_interpolation: str = "bilinear"
    bce_loss: bool = False
    drop: float | None = Field(None, ge=0, lt=1)
    drop_path: float | None = Field(None, ge=0, lt=1)
    model_ema: bool = False  # average the weights; the better of student and average counts and is delivered
    model_ema_decay: float = Field(0.9998, gt=0, lt=1)
    amp: bool = False
    amp_dtype: Literal["float16", "bfloat16"] = "bfloat16"

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _is_a_range(cls, bounds, info):
        most = 1.0 if info.field_name == "crop_scale" else float("inf")
        if not 0 < bounds[0] <= bounds[1] <= most:
            raise ValueError("must be LOW,HIGH with 0 < LOW <= HIGH" + (" <= 1" if most == 1.0 else ""))
        return bounds


class TrialConfig(DataFields, TeacherFields, StudentFields, Distillation, Recipe):
    """Everything that decides one trial's result."""

    seed: int = 0
