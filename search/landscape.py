"""A made-up student: learning curves over OFA-KD's hyperparameters, for trying searches without training.

The accuracy that a configuration ends at is `CEILING` less five drops, each 0 at the optimum:

1. A bowl over the numeric hyperparameters, each brought to 0..1 by its usual range (`AXES`), with interactions of every
   two and importances that differ tenfold: `WIDTH * (1 - exp(-d' A d))` for the distance d from the optimum.
2. The set of stages: a gain for each stage and one for each pair; the best of the 16 sets loses nothing. More stages
   want a smaller `ofa_loss_weight`.
3. Each stage's own best eps, near that of the logits: a single eps for all cannot reach the optimum, a list can.
4. Ruggedness: a cosine along each axis, `RUGGED` points high, so that there are local optima.
5. Parameters that this module does not know: each has a mild effect, drawn from its name, as has another distiller.

From `START` it rises as `(1 - exp(-k t)) / (1 - exp(-k))` of the way over t, the share of the trial's epochs. The speed
k depends on the configuration in another direction than the end does, so that early ranks partly mislead: over random
configurations of `spaces/vit_to_mlp.py` and 30 landscapes, Spearman's correlation between the accuracy at a third of
the epochs and the last one is 0.61 on average (0.30 to 0.90). Noise from seed and configuration: `SEED_NOISE` points on
the whole curve, `EPOCH_NOISE` on each epoch.
"""

import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

CEILING, START, WIDTH = 80.0, 10.0, 25.0  # percent; START is chance among ten classes
STAGES_WIDTH, EPS_WIDTH, RUGGED, MILD = 8.0, 6.0, 1.0, 1.0  # the largest of the other drops, in points
WITHOUT_TEACHER = 28.0  # how far below the ceiling the student alone ends
SEED_NOISE, EPOCH_NOISE = 0.4, 0.3  # standard deviations, in points
SLOWEST, FASTEST = 1.2, 7.0  # k


@dataclass(frozen=True)
class Axis:
    """A hyperparameter's usual range, which is mapped to 0..1."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies; beyond the range it goes on."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        return math.log(max(value, 1e-12) / self.low) / math.log(self.high / self.low)


AXES = {
    "eps": Axis(0.8, 2.5),
    "temperature": Axis(0.5, 8.0, log=True),
    "gt_loss_weight": Axis(0.1, 1.0),
    "kd_loss_weight": Axis(0.1, 2.0),
    "ofa_loss_weight": Axis(0.03, 2.0, log=True),
    "lr": Axis(1e-4, 1e-1, log=True),
    "weight_decay": Axis(1e-4, 0.5, log=True),
}
IF_SEARCHED = ("lr", "weight_decay")  # a recipe's own value is taken to be right
READ = {*AXES, "stages", "distiller", "epochs", "student", "student_kwargs"}  # of a configuration
SETS = [stages for count in range(5) for stages in itertools.combinations((1, 2, 3, 4), count)]


class Synthetic:
    """The curves of one landscape.

    Args:
        shift: moves the optimum along every axis by so much of its range, and the stages' gains by as large a share:
            with the unshifted landscape, two related pairs of models.
        variant: which landscape: places, importances, interactions, gains and speeds are drawn from it.
    """

    def __init__(self, shift: float = 0.0, variant: int = 0):
        random, moves = np.random.default_rng([variant, 0]), np.random.default_rng([variant, 1])
        count = len(AXES)
        self.best_place = np.clip(
            random.uniform(0.2, 0.8, count) + shift * moves.choice([-1.0, 1.0], count), 0.02, 0.98
        )
        mixing = np.eye(count) + random.uniform(-0.4, 0.4, (count, count))
        self._bowl = np.sqrt(5.0 * 10.0 ** -random.uniform(0, 1, count))[:, None] * mixing
        self._eps_offsets = random.uniform(-0.15, 0.15, 4)
        gains = random.normal(0.5, 1.0, 4) + shift * moves.normal(0, 1.0, 4)
        pairs = random.normal(0, 0.5, (4, 4)) + shift * moves.normal(0, 0.5, (4, 4))
        worth = [sum(gains[s - 1] for s in one) + sum(pairs[a - 1, b - 1] for a in one for b in one if a < b)
                 for one in SETS]  # fmt: skip
        spread = max(worth) - min(worth)
        self._set_drops = {
            one: STAGES_WIDTH * (max(worth) - value) / spread for one, value in zip(SETS, worth, strict=True)
        }
        self._speed = random.normal(0, 1.0, count)
        self._variant = variant

    @cached_property
    def best_stages(self) -> list[int]:
        """The set that loses nothing."""
        return list(min(self._set_drops, key=self._set_drops.get))

    def final(self, config: dict[str, Any], params: dict[str, Any]) -> float:
        """The accuracy that a configuration ends at, in percent, without noise; at most `CEILING`."""
        mild = sum(self._mild(name, value) for name, value in params.items() if self._unknown(name))
        if config.get("distiller") == "none":
            return CEILING - WITHOUT_TEACHER - mild
        away = self._away(config, params)
        bowl = WIDTH * (1 - math.exp(-float(np.sum((away @ self._bowl) ** 2))))
        rugged = RUGGED * float(np.mean(1 - np.cos(2 * np.pi * 5 * away))) / 2
        stages = self._set_drops[tuple(config["stages"])]
        other = 4 * self._mild("distiller", config.get("distiller", "ofa")) if not self._is_ofa(config) else 0.0
        return max(0.0, CEILING - bowl - rugged - stages - self._eps_drop(config) - mild - other)

    def __call__(self, config: dict[str, Any], params: dict[str, Any], epochs: int, seed: int) -> list[dict[str, Any]]:
        """A trial's metrics by epoch; see `search.curves.Curves`."""
        trained = {name: config[name] for name in sorted(READ & config.keys())}  # a new field of others moves no curve
        text = json.dumps([trained, params, seed, self._variant], sort_keys=True, default=str)
        random = np.random.default_rng(_number(text))
        final = self.final(config, params) + float(random.normal(0, SEED_NOISE))
        speed = self._k(config, params)
        stages = len(config["stages"])
        epoch_s = 20.0 * (1 + 0.15 * stages) * float(random.uniform(0.95, 1.05))
        history: list[dict[str, Any]] = []
        for epoch in range(1, epochs + 1):
            way = math.expm1(-speed * epoch / epochs) / math.expm1(-speed)
            top1 = min(100.0, max(0.0, START + (final - START) * way + float(random.normal(0, EPOCH_NOISE))))
            missed = 1 - top1 / 100
            history.append(
                {
                    "epoch": epoch,
                    "train/loss": 3.0 * missed + 0.2,
                    "train/loss_gt": 2.0 * missed + 0.1,
                    "train/loss_kd": 1.0 * missed + 0.1,
                    **({"train/loss_ofa": 1.5 * missed + 0.1} if stages else {}),
                    "val/top1": top1,
                    "val/top5": 100 - 30 * missed,
                    "val/loss": 2.5 * missed**1.2 + 0.05,
                    "val/balanced_accuracy": top1 * (1 - 0.01 * missed),
                    "val/macro_f1": top1 * (1 - 0.02 * missed),
                    "val/ece": 2 + 10 * missed * abs(math.sin(3 * speed)),
                    "val/agreement": 5 + 0.9 * top1,
                    "best/val_top1": max([top1] + [entry["val/top1"] for entry in history]),
                    "time/epoch_s": epoch_s,
                    "time/trained_s": epoch * epoch_s,
                    "time/images_per_s": 20_000 / epoch_s,
                }
            )
        history[0] |= _costs(config)
        return history

    def _away(self, config: dict[str, Any], params: dict[str, Any]) -> np.ndarray:
        """How far each axis is from its optimum; 0 for what has no part in this configuration."""
        away = np.zeros(len(AXES))
        for index, (name, axis) in enumerate(AXES.items()):
            if name in IF_SEARCHED and not any(one.partition("@")[0] == name for one in params):
                continue
            if name == "ofa_loss_weight" and not (config["stages"] and self._is_ofa(config)):
                continue
            value = config[name]
            away[index] = axis.place(value[-1] if isinstance(value, list) else value) - self.best_place[index]
            if name == "ofa_loss_weight":
                away[index] += 0.08 * (len(config["stages"]) - 2.5)
        return away

    def _eps_drop(self, config: dict[str, Any]) -> float:
        eps, stages = config["eps"], config["stages"]
        each = eps[:-1] if isinstance(eps, list) and len(eps) > 1 else [np.ravel(eps)[0]] * len(stages)
        away = [AXES["eps"].place(one) - self.best_place[0] - self._eps_offsets[stage - 1]
                for one, stage in zip(each, stages, strict=True)]  # fmt: skip
        return min(EPS_WIDTH, EPS_WIDTH * float(np.mean(np.square(away)))) if stages else 0.0

    def _k(self, config: dict[str, Any], params: dict[str, Any]) -> float:
        """How fast it learns: gentle at the optimum's place, and by the direction of `_speed` away from it."""
        turn = float(self._away(config, params) @ self._speed) - 0.1 * (len(config["stages"]) - 2)
        share = 1 / (1 + math.exp(-2.0 * turn))
        return SLOWEST * (FASTEST / SLOWEST) ** share

    def _mild(self, name: str, value: Any) -> float:
        """0 to `MILD` points: a wave over a number's logarithm, a draw for anything else."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            size = math.copysign(math.log1p(abs(value)), value)
            return MILD * (1 + math.cos(2 * math.pi * (0.35 * size + _share(f"{self._variant} {name}")))) / 2
        return MILD * _share(f"{self._variant} {name} {value}")

    @staticmethod
    def _unknown(name: str) -> bool:
        base = name.partition("@")[0]
        return base not in AXES and base != "distiller" and not base.startswith(("stage", "eps"))

    @staticmethod
    def _is_ofa(config: dict[str, Any]) -> bool:
        return "ofa" in config.get("distiller", "ofa").split("+")


def _costs(config: dict[str, Any]) -> dict[str, float]:
    """Of a student by its name: what a larger one costs more of everything."""
    size = 10 ** (5 + 3 * _share(f"{config.get('student')} {config.get('student_kwargs')}"))
    return {
        "cost/student_params": round(size),
        "cost/student_flops": round(60 * size),
        "cost/latency_ms": 0.5 + size / 2e6,
        "cost/branch_params": round(0.1 * size * len(config["stages"])),
        "cost/branch_flops": round(6 * size * len(config["stages"])),
    }


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _share(text: str) -> float:
    """A draw from 0..1 that depends on the text alone."""
    return _number(text) / 2**64
