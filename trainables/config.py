"""What a trial needs to know, as validated plain data. Imports no torch, so that spaces and commands stay light.

The fields are flat and carry the names that the command line, MLflow and `best.yaml` show; recipe fields have the
names of timm's train.py (but `crop_scale` and `crop_ratio`, since `scale` is the study's).
"""

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from trainables.distillers import COMMON, DISTILLERS, distillers_of, hyperparameters, taps_stages
from trainables.distillers.base import STAGE_LOGITS
from trainables.fields import Strict
from trainables.store_mode import StoreMode, parse_store

METRICS = ("top1", "top5", "loss", "balanced_accuracy", "macro_f1", "ece", "agreement", "top1_raw", "top1_ema")
Source = Literal["scratch", "pretrained", "checkpoint"]
Taps = Literal["ofakd", "even"] | list[int] | list[str]


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
    train_with_holdout: bool = False  # the holdout's images are trained on too, and no longer judge: for delivery


def data_fields(fields: Strict) -> DataFields:
    """The data's fields among those of a trial or a study."""
    return DataFields(**fields.model_dump(include=set(DataFields.model_fields)))


class JudgingFields(Strict):
    """By what a student is judged, besides the usual metrics."""

    metrics: list[str] = []  # the user's own, package.module:function(logits [N, C], target [N]) -> float

    @field_validator("metrics")
    @classmethod
    def _metrics_are_functions(cls, metrics):
        names = [path.rpartition(":")[2] for path in metrics]
        for path, name in zip(metrics, names, strict=True):
            if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", path):
                raise ValueError(f"{path!r} is no package.module:function")
            if name in METRICS or names.count(name) > 1:
                raise ValueError(f"there is a metric {name!r} already; give the function of {path!r} another name")
        return metrics


class RunFields(Strict):
    """How a trial runs, whatever it trains."""

    deterministic: bool = False  # on a GPU: the same seed gives the same numbers, at a price in speed
    teacher_store: str = "full"  # of the teacher's answers: off, full, topk:N (logits), views:V, topk:N+views:V
    teacher_store_dtype: Literal["float16", "float32"] = "float16"
    teacher_store_at: str | None = None  # a folder or any URL of fsspec's; None: in the storage
    system_metrics: bool = False  # how busy CPU, memory and GPU are goes with each epoch's report, as system/…

    @field_validator("teacher_store")
    @classmethod
    def _store_is_known(cls, text):
        parse_store(text)
        return text

    @property
    def store_mode(self) -> StoreMode:
        """`teacher_store`, taken apart."""
        return parse_store(self.teacher_store)


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


class Distillation(*(distiller.Fields for distiller in DISTILLERS.values() if distiller.Fields is not Strict)):
    """How the student learns: cross-entropy and a distiller's terms, each with its weight.

    Every distiller's own fields are declared in its file in `trainables/distillers`.
    """

    distiller: str = "ofa"  # one of DISTILLERS, or several joined by +, whose terms are added
    stages: list[int] = [1, 2, 3, 4]
    temperature: float = Field(1.0, gt=0)
    gt_loss_weight: float = Field(1.0, ge=0)
    kd_loss_weight: float = Field(1.0, ge=0)  # of the distiller's loss on the final logits
    normalize_loss_weights: bool = False  # divide the weights by their sum
    projector: Literal["auto", "conv", "token", "pooled"] = "auto"  # the official ones by the student, or a light one
    logit_standardization: bool = False  # both sides' logits to mean 0 and deviation 1 first (CVPR 2024)
    curriculum_temperature: bool = False  # learn the temperature instead (CTKD, AAAI 2023); `temperature` is not read
    curriculum_range: list[float] = Field([1.0, 21.0], min_length=2, max_length=2)  # bounds of the learned temperature
    curriculum_epochs: int = Field(10, ge=1)  # over which the temperature learns faster and faster
    curriculum_strength: float = Field(1.0, ge=0)  # the factor of its reversed gradient then

    @field_validator("distiller")
    @classmethod
    def _distiller_is_known(cls, distiller):
        distillers_of(distiller)
        return distiller

    @field_validator("stages")
    @classmethod
    def _stages_are_one_to_four(cls, stages):
        if sorted(set(stages)) != stages or not set(stages) <= {1, 2, 3, 4}:
            raise ValueError("stages must be distinct, ascending and among 1, 2, 3, 4")
        return stages

    @field_validator("curriculum_range")
    @classmethod
    def _is_a_range_of_temperatures(cls, bounds):
        if not 0 < bounds[0] < bounds[1]:
            raise ValueError("must be LOW,HIGH with 0 < LOW < HIGH")
        return bounds

    @model_validator(mode="after")
    def _eps_fits_the_stages(self):
        if isinstance(self.eps, list) and len(self.eps) not in (1, len(self.stages) + 1):
            raise ValueError(
                f"eps has {len(self.eps)} values for stages {self.stages}: give one, or {len(self.stages) + 1} "
                "(one per stage and one for the logits)"
            )
        return self

    @model_validator(mode="after")
    def _something_is_learned(self):
        weights, where = {"gt_loss_weight"}, ""
        for distiller in distillers_of(self.distiller):
            terms = distiller.weights.keys() - (set() if self.stages else distiller.stage_terms)
            weights |= {distiller.weights[term] for term in terms}
        if not self.stages:
            where = " where no stage is chosen"
        if not any(getattr(self, weight) for weight in weights):
            raise ValueError(f"{', '.join(sorted(weights))} must not all be 0{where}")
        return self

    @model_validator(mode="after")
    def _options_are_obeyed(self):
        obeyed = set().union(*(distiller.common for distiller in distillers_of(self.distiller)))
        for option in sorted(COMMON - obeyed - {"temperature"}):
            if getattr(self, option):
                able = ", ".join(name for name, distiller in DISTILLERS.items() if option in distiller.common)
                raise ValueError(f"{option}: distiller {self.distiller} has no such option; {able} have")
        return self


def fields_read(distiller: str, curriculum_temperature: bool = False) -> set[str]:
    """Which fields of `Distillation` decide the result of trials with this distiller and that option."""
    read = {"distiller", "gt_loss_weight", "normalize_loss_weights"} | hyperparameters(distiller)
    if taps_stages(distiller):
        read.add("stages")
    if any(STAGE_LOGITS in one.needs for one in distillers_of(distiller)):
        read.add("projector")
    if curriculum_temperature:
        read |= {"curriculum_range", "curriculum_epochs", "curriculum_strength"}
        read.discard("temperature")
    return read


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
    sched_restarts: list[int] = []  # epochs after which the schedule starts anew; from the last on they are ignored
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
    amp: bool | None = None  # mixed precision; None, here and below: where it pays, see BY_DEVICE
    amp_dtype: Literal["float16", "bfloat16"] = "bfloat16"
    channels_last: bool | None = None  # the order in memory that convolutions work in
    torchcompile: bool | None = None  # the student's repeated blocks, by torch.compile
    opt_fused: bool | None = None  # the whole update in one kernel, where the optimizer has such a form
    cuda_graph: bool | None = None  # replay a captured step, where each step is made of the same kernels

    @field_validator("sched_restarts")
    @classmethod
    def _restarts_ascend(cls, epochs):
        if sorted(set(epochs)) != epochs or any(epoch < 1 for epoch in epochs):
            raise ValueError("must be ascending epochs from 1")
        return epochs

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _is_a_range(cls, bounds, info):
        most = 1.0 if info.field_name == "crop_scale" else float("inf")
        if not 0 < bounds[0] <= bounds[1] <= most:
            raise ValueError("must be LOW,HIGH with 0 < LOW <= HIGH" + (" <= 1" if most == 1.0 else ""))
        return bounds


# Recipe fields whose default is what pays on the device (`python tests/benchmarks/run.py options`)
BY_DEVICE = {
    "cuda": {"amp": True, "channels_last": True, "torchcompile": True, "opt_fused": True, "cuda_graph": True},
    "cpu": {"amp": False, "channels_last": True, "torchcompile": False, "opt_fused": True, "cuda_graph": False},
}


class TrialConfig(DataFields, TeacherFields, StudentFields, Distillation, Recipe, JudgingFields, RunFields):
    """Everything that decides one trial's result."""

    seed: int = 0
    objective: str = Field("max:top1", pattern=r"^(max|min):\w+$")  # of the holdout's figures, what ranks trials

    def on(self, device: str) -> Self:
        """With the defaults that depend on the device filled in; what is given stays.

        Args:
            device: its type, `cpu` or `cuda`.
        """
        best = BY_DEVICE[device] | ({"cuda_graph": False} if ":" in self.student else {})  # may decide in Python
        return self.model_copy(update={name: value for name, value in best.items() if getattr(self, name) is None})

    @property
    def judged_by(self) -> str:
        """The figure that ranks trials."""
        return self.objective.partition(":")[2]

    def better(self, value: float, other: float) -> bool:
        """Whether a value of that figure is better than another one."""
        return value > other if self.objective.startswith("max") else value < other
