"""A trial as Lightning's module and data, for LightningCLI.

    python -m trainables.adapters.lightning fit --config lightning.yaml

Source: https://lightning.ai/docs/pytorch/stable/cli/lightning_cli.html
"""

from pathlib import Path
from typing import Any

import lightning
import timm.utils
import torch
import torch.nn.functional as F

from trainables.adapters.common import Epochs, Parts
from trainables.checkpoint import save_weights, seed_everything
from trainables.optim import make_optimizer, make_scheduler

STUDENT = "student.safetensors"


class Distillation(lightning.LightningModule):
    """Trains a student as a trial does; judges it, or the average of its weights, on the holdout.

    Logs the terms of the loss as `train/*`, `val/top1` in percent and `val/loss`; the student of the last epoch lies in
    `default_root_dir` as `student.safetensors`.

    Args:
        config: the trial's whole configuration, flat, as `best.json` has it under `config`.
        teacher_weights: the teacher's file.
    """

    def __init__(self, config: dict[str, Any], teacher_weights: str | None = None):
        super().__init__()
        self.parts = Parts(config, teacher_weights)
        self.config, self.taught = self.parts.config, self.parts.taught
        decay, averaged = self.config.model_ema_decay, self.config.model_ema
        self.ema = timm.utils.ModelEmaV3(self.taught.student.model, decay) if averaged else None
        self._schedule = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """timm's optimizer, and its schedule, which changes the rates after every step."""
        optimizer = make_optimizer(self.taught, self.config)
        steps = len(self.parts.stream(world_size=self.trainer.world_size))
        self._schedule = make_scheduler(optimizer, self.config, steps)
        return optimizer

    def on_fit_start(self) -> None:
        """Begins dropout and the like as our own loop does."""
        seed_everything(self.config.seed + self.global_rank)

    def training_step(self, batch: tuple[torch.Tensor, ...], batch_idx: int) -> torch.Tensor:
        """The loss of a batch."""
        images, target, index = batch
        terms = self.parts.terms(images, target, index, self.global_step, self.current_epoch, self.taught)
        for name, value in terms.items():
            self.log(
                "train/loss" if name == "loss" else f"train/loss_{name}", value.detach(), on_epoch=True, on_step=False
            )
        return terms["loss"]

    def on_train_batch_end(self, *_: Any) -> None:
        """Moves the schedule and the average on."""
        self._schedule.step_update(self.global_step)
        if self.ema:
            self.ema.update(self.taught.student.model, step=self.global_step)

    def validation_step(self, batch: tuple[torch.Tensor, ...], batch_idx: int) -> None:
        """Judges a batch of the holdout."""
        images, target = batch
        logits = self.delivered()(images).float()
        options = {"batch_size": len(images), "sync_dist": True}
        self.log("val/top1", 100 * (logits.argmax(1) == target).float().mean(), prog_bar=True, **options)
        self.log("val/loss", F.cross_entropy(logits, target), **options)

    def delivered(self) -> torch.nn.Module:
        """The student that is judged and kept."""
        return self.ema.module if self.ema else self.taught.student.model

    def on_fit_end(self) -> None:
        """Writes the student."""
        if self.trainer.is_global_zero:
            save_weights(self.delivered(), Path(self.trainer.default_root_dir) / STUDENT)


class TrialData(lightning.LightningDataModule):
    """The batches of `Distillation`'s own trial: the stream of our own loop, and the holdout."""

    def train_dataloader(self) -> Epochs:
        """One epoch of the stream after another."""
        trainer = self.trainer
        stream = trainer.lightning_module.parts.stream(trainer.global_rank, trainer.world_size)
        return Epochs(stream, lambda: trainer.current_epoch)

    def val_dataloader(self):
        """The holdout."""
        return self.trainer.lightning_module.parts.holdout(self.trainer.global_rank, self.trainer.world_size)


def main(arguments: list[str] | None = None) -> None:
    """Lightning's command line for the two."""
    from lightning.pytorch.cli import LightningCLI

    LightningCLI(
        Distillation, TrialData, args=arguments, save_config_kwargs={"overwrite": True}, seed_everything_default=False
    )


if __name__ == "__main__":
    main()
