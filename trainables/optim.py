"""Optimizer and schedule of a trial, from timm's factories."""

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2

from trainables.config import TrialConfig
from trainables.distillation import Taught
from trainables.errors import InputError


def make_optimizer(taught: Taught, config: TrialConfig) -> torch.optim.Optimizer:
    """timm's optimizer over the student and its branches (projectors and what else is for training only).

    The branches have a learning rate and weight decay of their own.

    Parameters with one dimension, and those the model exempts by `no_weight_decay`, are not decayed.

    Raises:
        InputError: `opt` is not an optimizer of timm's.
    """
    model, groups = taught.student.model, []
    scales = config.projector_lr_scale, config.projector_weight_decay_scale
    for module, exempt, lr, decay in (
        (model, model.no_weight_decay() if hasattr(model, "no_weight_decay") else (), 1.0, 1.0),
        (taught.student.projectors, (), *scales),
        (taught.extras, (), *scales),
    ):
        for group in param_groups_weight_decay(module, config.weight_decay * decay, no_weight_decay_list=exempt):
            if group["params"]:
                groups.append({**group, "lr_scale": lr})  # timm's schedulers apply it, to warm-up and floor too
    try:
        return create_optimizer_v2(groups, opt=config.opt, lr=config.lr, weight_decay=0.0, momentum=config.momentum)
    except (ValueError, AssertionError) as error:
        raise InputError(f"opt: '{config.opt}' is no optimizer of timm's ({error})") from error


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrialConfig, steps_per_epoch: int):
    """timm's schedule over the trial's full length, stepped once an update (`step_update`)."""
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=config.sched,
        num_epochs=config.epochs,
        warmup_epochs=min(config.warmup_epochs, config.epochs - 1),  # a shortened trial keeps an epoch at full rate
        warmup_lr=min(config.warmup_lr, config.lr),  # a searched low rate must not rise to them
        min_lr=min(config.min_lr, config.lr),
        decay_epochs=config.decay_epochs,
        decay_rate=config.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    scheduler.step_update(0)  # the first step's rates, each group's `lr_scale` applied
    return scheduler
