"""One trial, from its configuration to a trained student: builds, resumes, trains, judges, reports, saves."""

import math
import time
from functools import cache
from typing import Any

import numpy as np
import timm.utils
import torch
from torch.nn.parallel import DistributedDataParallel

from trainables import checkpoint
from trainables.acceleration import accelerate, uncompiled
from trainables.assets import Assets
from trainables.build import build_model, normalization
from trainables.config import TrialConfig
from trainables.context import RunContext, TrialFailure
from trainables.cost import costs
from trainables.distillation import make_taught, needs_of
from trainables.evaluate import evaluate
from trainables.feed import Batch, Feed
from trainables.files import STUDENT, TEST, drop_checkpoint
from trainables.metrics import Predictions, own_metrics
from trainables.optim import make_optimizer, make_scheduler
from trainables.step import TrainStep
from trainables.student import Student
from trainables.system import system_metrics

TERM_NAMES = {"loss": "train/loss", "temperature": "train/temperature"}  # the others are train/loss_TERM


def build_student(config: TrialConfig, num_classes: int) -> Student:
    """The student and the projectors its distiller needs, on the CPU, from the global random state.

    Raises:
        InputError: as `build_model` and `Student`, naming the field.
    """
    model = build_model(
        config.student,
        num_classes=num_classes,
        img_size=config.img_size,
        source=config.student_source,
        weights=config.student_weights,
        kwargs=config.student_kwargs,
        drop=config.drop,
        drop_path=config.drop_path,
        taps=config.taps,
        field="student",
    )
    return Student(model, num_classes, config.img_size, config.stages, config.taps, config.projector, needs_of(config))


def run_trial(
    config: TrialConfig, assets: Assets, context: RunContext, known_epoch: int = 0, test: bool = False
) -> bool:
    """Trains one configuration, going on from its checkpoint where there is one.

    Reports once an epoch (metrics in percent, seconds and images per second, by the names of the tracking schema, and
    `epoch` from 1). The last epoch's student lies in the trial's folder as `student.safetensors`.

    Args:
        config: the whole configuration.
        assets: the data and the teacher, which outlive the trial.
        context: where it runs.
        known_epoch: the last epoch whose report has arrived; later ones in the checkpoint are reported again.
        test: judge the delivered student on the test split too: the last epoch has `test/*`, and `test.npz` in the
            trial's folder has `target` and `predicted`, int64 [N] each, in the split's order. Nothing else reads it.

    Returns:
        True where it ran to its last epoch, False where a report's answer stopped it, or its machine is to go and it
        is `paused`.

    Raises:
        TrialFailure: the loss is not finite.
        InputError: the configuration does not fit the models or the data, or a metric of the user's cannot be had.
    """
    try:
        run = Run(config, assets, context, test)
        try:
            whole = _train(run, known_epoch)
        finally:
            run.close()
            run.feed.close()
    except BaseException as error:
        context.log.end(error)
        raise
    context.log.end(run.outcome)
    return whole


def _train(run: "Run", known_epoch: int) -> bool:
    """Trains what is left of a trial, as `run_trial`."""
    for metrics in run.unreported(known_epoch):
        if not run.context.report(metrics):
            return False
    while not run.whole:
        run.begin_epoch()
        for batch in run.feed.epoch(run.epoch, run.steps):
            run.train(batch)
            if run.steps < len(run.feed) and run.context.must_leave(run.steps):
                run.pause()
                return False
        if not run.context.report(run.end_epoch()):
            return False
    run.complete()
    return True


class Run:
    """A trial as it is trained, epoch by epoch: `begin_epoch`, then `train` for each batch of its feed, `end_epoch`.

    It goes on from the checkpoint in its folder, where there is one. All random numbers are the process's.

    Args:
        config, assets, context, test: as for `run_trial`, which raises alike.

    Attributes:
        epoch: how many it has made.
        feed: what it reads; whoever drives the run closes it, and may put another one of an equal key in its place.
    """

    def __init__(self, config: TrialConfig, assets: Assets, context: RunContext, test: bool):
        self.begun, self.first_step_s = time.perf_counter(), None
        config = config.on(context.device.type)
        self.config, self.assets, self.context, self.test = config, assets, context, test
        context.log.begin(config, context.device, context.world_size)
        own_metrics(config.metrics)  # what judging refuses is refused before anything trains
        if test:
            assets.split("test", config)
        checkpoint.set_deterministic(config.deterministic and context.device.type == "cuda")
        checkpoint.seed_everything(config.seed)
        splits = assets.splits(config)
        student = build_student(config, len(splits.classes)).to(context.device)
        mean, std = normalization(student.model)
        needs = needs_of(config)
        teacher = cache(lambda: assets.teacher(config, mean, std, needs))  # where all is stored, none is built
        classes = torch.tensor(splits.train.targets)
        self.taught = make_taught(student, config, teacher, classes, context.rank, context.world_size)
        self.taught.to(context.device)
        accelerate(self.taught, config)
        self.student = student
        checkpoint.seed_everything(config.seed + context.rank)  # dropout differs by rank, weights do not
        self.module = DistributedDataParallel(self.taught) if context.world_size > 1 else self.taught
        self.feed = Feed(config, assets, context, mean, std, teacher, self.taught.teacher_embedding)
        self.optimizer = make_optimizer(self.taught, config)
        self.scheduler = make_scheduler(self.optimizer, config, len(self.feed))
        self.ema = timm.utils.ModelEmaV3(self.student.model, config.model_ema_decay) if config.model_ema else None
        self.step = TrainStep(self.module, self.optimizer, config, context.device, assets.warn)
        self.epoch, self.history, self.steps = 0, [], 0
        self._under_way: dict[str, Any] = {}  # what it had of an epoch that it was paused in
        self._resume()
        context.log.write(self._from_where())
        self._system = system_metrics(context) if config.system_metrics else None

    @property
    def whole(self) -> bool:
        """Whether it has made its last epoch."""
        return self.epoch >= self.config.epochs

    @property
    def outcome(self) -> str:
        """How it ended, for its log."""
        if self.context.paused:
            return f"paused after step {self.steps} of epoch {self.epoch + 1}: its machine is about to go"
        return f"{'ended' if self.whole else 'stopped, as the report was answered,'} after epoch {self.epoch}"

    def unreported(self, known_epoch: int) -> list[dict[str, float]]:
        """The metrics of the epochs in the checkpoint after that one."""
        return [metrics for metrics in self.history if metrics["epoch"] > known_epoch]

    def begin_epoch(self) -> None:
        """Begins with an epoch's training."""
        before, self._under_way = self._under_way, {}
        self.steps = before.get("steps", 0)
        self._epoch_begun = time.perf_counter() - before.get("seconds", 0.0)
        self._sums, self._images = before.get("sums"), before.get("images", 0)
        self.module.train()

    def train(self, batch: Batch) -> None:
        """Makes a step on the feed's next batch; nothing waits for the device."""
        number = self.epoch * len(self.feed) + self.steps
        values = self.step(batch.images, batch.target, batch.teacher, batch.index, number, self.epoch)
        if self.first_step_s is None:
            self.first_step_s = time.perf_counter() - self.begun
        self.steps += 1
        self.scheduler.step_update(number + 1)
        if self.ema:
            self.ema.update(self.student.model, step=number + 1)
        self._sums = values.clone() if self._sums is None else self._sums.add_(values)  # stays on the device
        self._images += len(batch.images)

    def end_epoch(self) -> dict[str, float]:
        """Judges the student, writes the checkpoint, and returns the epoch's metrics."""
        means = self.context.sum(self._sums) / self.context.world_size / len(self.feed)
        terms = dict(zip(self.step.names, means.tolist(), strict=True))
        trained = time.perf_counter()  # a GPU is done when it has given its numbers
        if not math.isfinite(terms["loss"]):
            raise TrialFailure(f"the training loss is {terms['loss']} in epoch {self.epoch + 1}")
        self.epoch, self.steps = self.epoch + 1, 0
        self._share_batch_norm()
        metrics = {
            "epoch": self.epoch,
            **{TERM_NAMES.get(name, f"train/loss_{name}"): value for name, value in terms.items()},
            "time/images_per_s": self._images * self.context.world_size / (trained - self._epoch_begun),
            **{f"teacher/{name}": value for name, value in self.feed.figures().items()},
        }
        if not self.config.train_with_holdout:
            metrics |= {f"val/{name}": value for name, value in self._judge().items()}
            if not math.isfinite(metrics["val/loss"]):
                raise TrialFailure(f"the holdout loss is {metrics['val/loss']} in epoch {self.epoch}")
            metrics["best/val_top1"] = max([metrics["val/top1"]] + [entry["val/top1"] for entry in self.history])
        metrics["time/epoch_s"] = time.perf_counter() - self._epoch_begun
        metrics["time/trained_s"] = sum(entry["time/epoch_s"] for entry in [*self.history, metrics])
        metrics["time/start_s"] = self.first_step_s  # from the slot to the first step of this attempt
        metrics |= self._system.means() if self._system else {}
        if not self.history:  # once a trial
            with uncompiled(self.config):
                metrics |= costs(self.taught, self.config.img_size)
        self.history.append(metrics)
        if self.test and self.epoch == self.config.epochs:
            judged = self._evaluate(self.delivered(), part="test", look=self._keep_predictions)
            metrics |= {f"test/{name}": value for name, value in judged.items()}
        self._save()
        self.context.log.epoch(metrics, self.config.epochs)
        return metrics

    def delivered(self) -> torch.nn.Module:
        """The student that is handed over: the one that the last epoch's `val/*` are of.

        Without a holdout that could tell which is better, it is the average where there is one.
        """
        if not self.ema:
            return self.student.model
        averaged = self.config.train_with_holdout or self._averaged_leads(self.history[-1], "val/")
        return self.ema.module if averaged else self.student.model

    def pause(self) -> None:
        """Writes the checkpoint amid an epoch, so that the trial goes on with its next step, to the bit."""
        seconds = time.perf_counter() - self._epoch_begun
        own = {"steps": self.steps, "seconds": seconds, "sums": self._sums, "images": self._images}
        modules = [self.taught, *([self.ema.module] if self.ema else [])]  # ranks normalise their own shares
        own["buffers"] = [dict(module.named_buffers()) for module in modules]
        self._save(self.context.gather(own))
        self.context.paused = True

    def complete(self) -> None:
        """After the last epoch's report: what only served to go on is removed."""
        if self.context.rank == 0:
            drop_checkpoint(self.context.folder)

    def close(self) -> None:
        """Ends what is its own beside its training; its feed may be others' too."""
        if self._system:
            self._system.close()

    def _judge(self) -> dict[str, float]:
        """The holdout's figures of the student, or of the average of its weights where that is the better."""
        raw = self._evaluate(self.student.model)
        if not self.ema:
            return raw
        averaged = self._evaluate(self.ema.module)
        both = {f"{name}_{which}": found.get(name, math.nan)
                for name in dict.fromkeys(("top1", self.config.judged_by))
                for which, found in (("raw", raw), ("ema", averaged))}  # fmt: skip
        return {**(averaged if self._averaged_leads(both) else raw), **both}

    def _averaged_leads(self, figures: dict[str, float], prefix: str = "") -> bool:
        name = f"{prefix}{self.config.judged_by}"
        return self.config.better(figures[f"{name}_ema"], figures[f"{name}_raw"])

    def _share_batch_norm(self) -> None:
        """Each rank has normalised its own share of the batches; what is judged and saved is the ranks' average."""
        if self.context.world_size > 1:
            for model in [self.student.model, *([self.ema.module] if self.ema else [])]:
                timm.utils.distribute_bn(model, self.context.world_size, reduce=True)

    def _evaluate(self, model: torch.nn.Module, **options) -> dict[str, float]:
        return evaluate(model, self.assets, self.config, self.context, **options)

    def _keep_predictions(self, predictions: Predictions) -> None:
        self.context.folder.mkdir(parents=True, exist_ok=True)  # a first epoch has saved nothing yet
        path = self.context.folder / TEST
        np.savez(path, target=predictions.target.numpy(), predicted=predictions.predicted.numpy())

    def _resume(self) -> None:
        state = checkpoint.load_checkpoint(self.context.folder)
        if state is None:
            return
        self.taught.load_state_dict(state["taught"])
        self.taught.load_shards(state["shards"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.epoch, self.history = state["epoch"], state["history"]
        same_workers = len(state["random"]) == self.context.world_size
        if same_workers:
            checkpoint.set_random_state(state["random"][self.context.rank])
        if under_way := state.get("under_way"):
            self._go_on_amid(under_way[self.context.rank if same_workers else 0])

    def _go_on_amid(self, own: dict[str, Any]) -> None:
        """Takes up an epoch where `pause` left it."""
        modules = [self.taught, *([self.ema.module] if self.ema else [])]
        for module, buffers in zip(modules, own.pop("buffers"), strict=True):
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
        own["sums"] = own["sums"].to(self.context.device)
        self._under_way, self.steps = own, own["steps"]

    def _from_where(self) -> str:
        if self.steps:
            return f"goes on after step {self.steps} of epoch {self.epoch + 1}, from its checkpoint"
        return f"goes on after epoch {self.epoch}, from its checkpoint" if self.epoch else "from epoch 1"

    def _save(self, under_way: list[dict[str, Any]] | None = None) -> None:
        random, shards = (self.context.gather(value) for value in (checkpoint.random_state(), self.taught.shards()))
        if self.context.rank == 0:
            if self.epoch == self.config.epochs:  # before it is reported, so that a complete trial has its weights
                checkpoint.save_weights(self.delivered(), self.context.folder / STUDENT)
            checkpoint.save_checkpoint(
                self.context.folder,
                {
                    "taught": self.taught.state_dict(),
                    "shards": shards,
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.step.scaler.state_dict(),
                    "ema": self.ema.module.state_dict() if self.ema else None,
                    "random": random,
                    "epoch": self.epoch,
                    "history": self.history,
                    "under_way": under_way,
                },
            )
