"""A trial under the Hugging Face Trainer.

    python -m trainables.adapters.hf training_args.json distill.json

Source: https://huggingface.co/docs/transformers/main_classes/trainer
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import HfArgumentParser, Trainer, TrainingArguments

from trainables.adapters.common import Epochs, Parts
from trainables.checkpoint import save_weights
from trainables.optim import make_optimizer, make_scheduler

STUDENT = "student.safetensors"


class DistillationTrainer(Trainer):
    """Trains a student as a trial does: its stream, its losses, its optimizer and schedule.

    Args:
        arguments: the Trainer's.
        config: the trial's whole configuration, flat.
        teacher_weights: the teacher's file.
    """

    def __init__(self, arguments: TrainingArguments, config: dict[str, Any], teacher_weights: str | Path | None = None):
        self.parts = Parts(config, teacher_weights)
        # `evaluate` reads the holdout; the Trainer wants to see a data set of its own
        super().__init__(model=_Model(self.parts), args=arguments, eval_dataset=range(1))

    def get_train_dataloader(self) -> Epochs:
        """One epoch of the stream after another."""
        stream = self.parts.stream(self.args.process_index, self.args.world_size)
        return _Named(stream, lambda: int(self.state.epoch or 0))

    def get_eval_dataloader(self, eval_dataset=None):
        """The holdout, whole in each process; `evaluate` reads it."""
        return self.parts.holdout()

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """timm's optimizer over the student and its projectors."""
        self.optimizer = make_optimizer(self.parts.taught, self.parts.config)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> torch.optim.lr_scheduler.LRScheduler:
        """timm's schedule, moved on after every step."""
        per_epoch = len(self.parts.stream())
        self.lr_scheduler = _Stepped(self.optimizer, make_scheduler(self.optimizer, self.parts.config, per_epoch))
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch."""
        terms = model(**inputs, number=self.state.global_step, epoch=int(self.state.epoch or 0))
        return (terms["loss"], terms) if return_outputs else terms["loss"]

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Top-1 in percent and the loss on the holdout."""
        student = self.parts.taught.student.model
        student.eval()
        right = loss = count = 0.0
        for images, target in self.get_eval_dataloader():
            with torch.no_grad():
                logits = student(images.to(self.args.device)).float().cpu()
            right += (logits.argmax(1) == target).sum().item()
            loss += F.cross_entropy(logits, target, reduction="sum").item()
            count += len(target)
        student.train()
        metrics = {f"{metric_key_prefix}_top1": 100 * right / count, f"{metric_key_prefix}_loss": loss / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Model(torch.nn.Module):
    """The student in training, called by names as the Trainer does; the teacher is no part of it."""

    def __init__(self, parts: Parts):
        super().__init__()
        self.taught = parts.taught
        self._parts = [parts]  # no module of this one

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        """In the usual order of memory: the Trainer's checkpoints take no other, and convolutions work in another."""
        return {name: value.contiguous() for name, value in super().state_dict(*arguments, **options).items()}

    def forward(self, images, target, index, number: int, epoch: int) -> dict[str, torch.Tensor]:
        return self._parts[0].terms(images, target, index, number, epoch, self.taught)


class _Named(Epochs):
    """Batches by name."""

    def __iter__(self):
        return (dict(zip(("images", "target", "index"), batch, strict=True)) for batch in super().__iter__())


class _Stepped(torch.optim.lr_scheduler.LRScheduler):
    """timm's schedule in PyTorch's form."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule):
        self._schedule = schedule
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        self._schedule.step_update(self.last_epoch)
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The update that it has come to; rates depend on nothing else."""
        return {"last_epoch": self.last_epoch}


def main(arguments: list[str]) -> None:
    """Trains as the two files say, and leaves the student in `output_dir`."""
    training, distill = (Path(name) for name in arguments)
    (training_arguments,) = HfArgumentParser(TrainingArguments).parse_json_file(str(training))
    content = json.loads(distill.read_text())
    teacher = content["teacher_weights"] and distill.parent / content["teacher_weights"]
    trainer = DistillationTrainer(training_arguments, content["config"], teacher)
    trainer.train()
    save_weights(trainer.parts.taught.student.model, Path(training_arguments.output_dir) / STUDENT)


if __name__ == "__main__":
    main(sys.argv[1:])
