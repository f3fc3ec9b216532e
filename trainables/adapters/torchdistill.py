"""OFA-KD inside torchdistill: models, losses, optimizer and schedule under names for its YAML, and a loop on it.

    python -m trainables.adapters.torchdistill --config torchdistill.yaml

A YAML that names this module under `dependencies` can use all of it with any script of torchdistill's.
Source: https://yoshitomo-matsubara.net/torchdistill/
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from timm.data import Mixup, create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor
from torchdistill.common import yaml_util
from torchdistill.common.main_util import import_dependencies
from torchdistill.core.distillation import DistillationBox
from torchdistill.datasets.registry import register_collate_func
from torchdistill.losses.registry import register_mid_level_loss
from torchdistill.models.registry import get_model, register_model
from torchdistill.optim.registry import register_optimizer, register_scheduler
from torchvision.datasets import ImageFolder

from trainables.build import build_model, normalization
from trainables.checkpoint import save_weights, seed_everything
from trainables.distillation import ground_truth_loss
from trainables.losses.kd import kd_loss
from trainables.losses.ofa import ofa_loss
from trainables.stream import EvalTransform
from trainables.student import Student
from trainables.teacher import Teacher

GROUP = "ofakd_group"  # of a parameter: its own learning rate's scale and its weight decay's


@register_model(key="ofakd_student")
class DistilledStudent(Student):
    """The student with a projector for each stage; gives logits, and has the projectors' as `projectors.STAGE`."""

    def __init__(self, name: str, num_classes: int, img_size: int, stages: list[int], seed: int, taps="ofakd",
                 projector: str = "auto", projector_lr_scale: float = 1.0, projector_weight_decay_scale: float = 1.0,
                 source: str = "scratch", weights: str | None = None, kwargs: dict[str, Any] | None = None,
                 drop: float | None = None, drop_path: float | None = None):  # fmt: skip
        seed_everything(seed)
        model = build_model(
            name, num_classes=num_classes, img_size=img_size, source=source, weights=weights, kwargs=kwargs, drop=drop,
            drop_path=drop_path, taps=taps,
        )  # fmt: skip
        super().__init__(model, num_classes, img_size, stages, taps, projector)
        exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        for part, without, lr, decay in (
            (self.model, exempt, 1.0, 1.0),
            (self.projectors, (), projector_lr_scale, projector_weight_decay_scale),
        ):
            for full, weight in part.named_parameters():
                decayed = weight.ndim > 1 and not full.endswith(".bias") and full not in without
                setattr(weight, GROUP, (lr, decay if decayed else 0.0))
        seed_everything(seed)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, C]."""
        return super().forward(images).logits


@register_model(key="ofakd_teacher")
class FrozenTeacher(Teacher):
    """The teacher, taking images in the student's normalisation; gives logits."""

    def __init__(self, name: str, num_classes: int, img_size: int, weights: str, student: dict[str, Any],
                 kwargs: dict[str, Any] | None = None):  # fmt: skip
        # `student`: arguments of `build_model`, whose normalisation it is
        with torch.random.fork_rng():
            model = build_model(
                name, num_classes=num_classes, img_size=img_size, source="checkpoint", weights=weights, kwargs=kwargs,
                field="teacher",
            )  # fmt: skip
            mean, std = normalization(build_model(num_classes=num_classes, **student))
        super().__init__(model, mean, std)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, C], without gradients."""
        return super().forward(images).logits


@register_mid_level_loss
class OFALoss(nn.Module):
    """The OFA losses of some of the student's outputs with the teacher's logits, summed.

    Args:
        modules: paths of the outputs, `.` for the final logits and `projectors.STAGE` for a stage's.
        eps: one for each.
        temperature, enhance: as `trainables.losses.ofa_loss` has them.
        temperature_squared: multiply by T².
    """

    def __init__(self, modules: list[str], eps: list[float], temperature: float = 1.0, enhance: str = "all",
                 temperature_squared: bool = False):  # fmt: skip
        super().__init__()
        self.eps = dict(zip(modules, eps, strict=True))
        self.options = {"temperature": temperature, "enhance": enhance}
        self.factor = temperature**2 if temperature_squared else 1.0

    def forward(self, student_io_dict, teacher_io_dict, targets, *_, **__) -> Tensor:
        """A scalar."""
        teacher = teacher_io_dict["."]["output"]
        losses = [
            ofa_loss(student_io_dict[path]["output"], teacher, targets, eps=eps, **self.options)
            for path, eps in self.eps.items()
        ]
        return self.factor * sum(losses)


@register_mid_level_loss
class LogitsKDLoss(nn.Module):
    """T² KL(teacher || student) of the final logits; labels may be mixed, for it reads none."""

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def forward(self, student_io_dict, teacher_io_dict, targets, *_, **__) -> Tensor:
        """A scalar."""
        return kd_loss(student_io_dict["."]["output"], teacher_io_dict["."]["output"], self.temperature)


@register_mid_level_loss
class GroundTruthLoss(nn.Module):
    """Cross-entropy with class indices or mixed labels, as timm's train.py has it."""

    def __init__(self, smoothing: float = 0.0, bce_loss: bool = False):
        super().__init__()
        self.options = {"smoothing": smoothing, "bce_loss": bce_loss}

    def forward(self, student_io_dict, teacher_io_dict, targets, *_, **__) -> Tensor:
        """A scalar."""
        return ground_truth_loss(student_io_dict["."]["output"], targets, **self.options)


@register_optimizer(key="ofakd_optimizer")
def make_optimizer(parameters: list[nn.Parameter], opt: str, lr: float, weight_decay: float, momentum: float = 0.9):
    """timm's optimizer over a `DistilledStudent`, norms and biases without decay."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for weight in parameters:
        scale, decay = getattr(weight, GROUP)
        group = {"params": [], "weight_decay": weight_decay * decay, "lr_scale": scale}
        groups.setdefault((scale, decay), group)["params"].append(weight)
    return create_optimizer_v2(list(groups.values()), opt=opt, lr=lr, weight_decay=0.0, momentum=momentum)


@register_scheduler(key="ofakd_scheduler")
class Schedule:
    """timm's schedule, to be stepped after every update (`scheduling_step: 1`).

    Args:
        steps_per_epoch: updates an epoch.
        schedule: arguments of timm's `create_scheduler_v2`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps_per_epoch: int, **schedule: Any):
        self._schedule, _ = create_scheduler_v2(
            optimizer, step_on_epochs=False, updates_per_epoch=steps_per_epoch, **schedule
        )
        self._done = 0
        self._schedule.step_update(0)

    def step(self, *_: Any) -> None:
        """Sets the rates for the next update."""
        self._done += 1
        self._schedule.step_update(self._done)

    def state_dict(self) -> dict[str, int]:
        """How many updates there were."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from there."""
        self._done = state["done"]
        self._schedule.step_update(self._done)


def images(root: str, student: dict[str, Any], num_classes: int, **transform: Any) -> ImageFolder:
    """A folder of class folders under timm's transform, in the normalisation of a student.

    Args:
        student: arguments of `build_model`, with `img_size`.
        transform: arguments of timm's `create_transform`, of training images.
    """
    with torch.random.fork_rng():
        mean, std = normalization(build_model(num_classes=num_classes, **student))
    side = student["img_size"]
    if transform.get("is_training"):
        return ImageFolder(root, create_transform(side, mean=mean, std=std, **transform))
    return ImageFolder(root, EvalTransform(side, mean, std))


def register_mixup(key: str, **options: Any) -> None:
    """Registers a collate function that mixes batches by timm's Mixup, under a name for `collate_fn`."""
    mixup = Mixup(**options)

    def mixed(samples):
        batch, targets, extra = torch.utils.data.default_collate(samples)
        return *mixup(batch, targets), extra

    register_collate_func(key=key)(mixed)


@torch.inference_mode()
def top1(student: DistilledStudent, loader, device: torch.device) -> float:
    """Accuracy in percent."""
    student.eval()
    right = count = 0
    for batch, target, *_ in loader:
        right += (student.model(batch.to(device)).argmax(1).cpu() == target).sum().item()
        count += len(target)
    student.train()
    return 100 * right / count


def main(arguments: list[str] | None = None) -> None:
    """Trains as the YAML says, prints an epoch's loss and accuracy, and leaves the student's weights."""
    parser = argparse.ArgumentParser(description="Train by torchdistill.")
    parser.add_argument("--config", required=True, help="YAML")
    options = parser.parse_args(arguments)
    config = yaml_util.load_yaml_file(options.config)
    import_dependencies(config.get("dependencies"))
    if mixup := config.get("mixup"):
        register_mixup("ofakd_mixup", **mixup)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, models = config["train"], config["models"]
    batch = train["train_data_loader"]["kwargs"]["batch_size"]
    train["scheduler"]["kwargs"]["steps_per_epoch"] = len(config["datasets"]["train"]) // batch  # of the data at hand
    student = get_model(models["student_model"]["key"], **models["student_model"]["kwargs"])
    teacher = get_model(models["teacher_model"]["key"], **models["teacher_model"]["kwargs"])
    box = DistillationBox(teacher, student, config["datasets"], train, device, None, False, 1)
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        losses = []
        for batch, targets, extra in box.train_data_loader:
            batch, targets = batch.to(device), targets.to(device)
            box.pre_forward_process()
            loss = box.forward_process(batch, targets, extra)
            box.post_forward_process(loss=loss)
            losses.append(loss.item())
        box.post_epoch_process()
        reached = top1(student, box.val_data_loader, device)
        print(f"epoch {epoch + 1:3}  loss {sum(losses) / len(losses):.6f}  val top1 {reached:.2f}", flush=True)
    out = Path(models["student_model"].get("dst_ckpt", "student.safetensors"))
    save_weights(student.model, out)


if __name__ == "__main__":
    main()
