"""Optimizer and schedule of a trial, from timm's factories."""

import inspect

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

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
    # A study's configuration may be trained elsewhere than it was searched.
    on_gpu = next(model.parameters()).is_cuda
    options = {"opt": config.opt, "lr": config.lr, "weight_decay": 0.0, "momentum": config.momentum}
    try:
        for option, wanted in (("fused", config.opt_fused), ("capturable", config.cuda_graph and on_gpu)):
            if wanted and _takes(config.opt, option):
                options[option] = True
        return create_optimizer_v2(groups, **options)
    except (ValueError, AssertionError) as error:
        raise InputError(f"opt: '{config.opt}' is no optimizer of timm's ({error})") from error


def _takes(opt: str, option: str) -> bool:
    inner = opt.lower().rpartition("_")[2]  # of timm's lookahead_NAME
    return option in inspect.signature(get_optimizer_class(inner, bind_defaults=False)).parameters


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrialConfig, steps_per_epoch: int):
    """timm's schedule over the trial's full length, or one after another where it restarts; stepped once an update.

    Its `step_update(step)` sets each group's rate; it depends on the step alone, so a resumed trial asks for its own.
    """
    ends = [*(epoch for epoch in config.sched_restarts if epoch < config.epochs), config.epochs]
    pieces = {}
    for begin, end in zip([0, *ends], ends, strict=False):
        share = (end - begin) / config.epochs
        pieces[begin * steps_per_epoch], _ = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            num_epochs=end - begin,
            # A shortened trial keeps an epoch at full rate; a later piece needs no warm-up.
            warmup_epochs=0 if begin else min(config.warmup_epochs, end - 1),
            warmup_lr=min(config.warmup_lr, config.lr),  # a searched low rate must not rise to them
            min_lr=min(config.min_lr, config.lr),
            decay_epochs=config.decay_epochs * share if config.sched_restarts else config.decay_epochs,
            decay_rate=config.decay_rate,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
    schedule = Schedule(pieces)
    schedule.step_update(0)  # the first step's rates, each group's `lr_scale` applied
    return schedule


class Schedule:
    """timm schedules one after another.

    Args:
        pieces: by the update with which each begins, ascending from 0.
    """

    def __init__(self, pieces: dict[int, Scheduler]):
        self._pieces = pieces

    def step_update(self, step: int) -> None:
        """Sets the rates for the update of that number, from 0."""
        begin = max(begin for begin in self._pieces if begin <= step)
        self._pieces[begin].step_update(step - begin)
