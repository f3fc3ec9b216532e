"""A student with its projectors: logits, the stages' logits and what else a distiller looks at, in one pass."""

import difflib
import math
from collections.abc import Collection
from typing import Literal

import torch.nn as nn
from torch import Tensor

from trainables.build import pooled_embedding
from trainables.config import Taps
from trainables.distillers.base import STAGE_LOGITS, STUDENT_EMBEDDING, STUDENT_FEATURES, StudentOutput
from trainables.errors import InputError
from trainables.projectors import ConvProjector, PooledProjector, TokenProjector
from trainables.trace import PYRAMID, probe

MAX_STAGES = 4


def stages_of(model: nn.Module, taps: Taps = "ofakd") -> list[int]:
    """Which of a model's features (indices into `feature_info`) are stages 1, 2, ...: four, or all it has.

    "ofakd" gives the official implementation's taps by rule instead of by table: the last feature of each of the
    deepest four resolutions, and of n blocks of one resolution the second, the fourth, the third from the end and the
    last. "even" spaces four taps evenly, the last one included.

    Args:
        model: as `build_model` gives it.
        taps: a rule's name, or one to four ascending indices themselves, or the names of as many modules, as
            `feature_info` has them.

    Raises:
        InputError: indices or names that the model has not, or too many of them, or out of order.
    """
    count = len(model.feature_info)
    if isinstance(taps, list) and any(isinstance(tap, str) for tap in taps):
        taps = _indices(model, taps)
    if isinstance(taps, list):
        if not 1 <= len(taps) <= MAX_STAGES or sorted(set(taps)) != taps or taps[0] < 0 or taps[-1] >= count:
            raise InputError(f"taps={taps}: give one to four ascending features of 0 to {count - 1}, or ofakd, or even")
        return taps
    last = {info["reduction"]: index for index, info in enumerate(model.feature_info)}
    if taps == "ofakd" and len(last) >= PYRAMID:
        return sorted(last[reduction] for reduction in sorted(last)[-MAX_STAGES:])
    if taps == "ofakd" and count >= 8:
        return [1, 3, count - 3, count - 1]
    taken = min(count, MAX_STAGES)
    return [math.ceil((i + 1) * count / taken) - 1 for i in range(taken)]


def _indices(model: nn.Module, modules: list[str]) -> list[int]:
    known, name = [info["module"] for info in model.feature_info], model.pretrained_cfg.get("architecture")
    problems = []
    for module in modules:
        if module not in known:
            near = difflib.get_close_matches(module, known) or known
            problems.append(f"taps: {name} has no feature '{module}'; there are {', '.join(near)}")
    if problems:
        raise InputError(problems)
    indices = [known.index(module) for module in modules]
    if sorted(set(indices)) != indices or len(indices) > MAX_STAGES:
        in_order = ",".join(known[index] for index in sorted(set(indices)))
        raise InputError(f"taps={','.join(modules)}: give one to four, each once, as they run: {in_order}")
    return indices


def available_stages(model: nn.Module, taps: Taps = "ofakd") -> list[int]:
    """The stages a model has: 1 to at most 4."""
    return list(range(1, len(stages_of(model, taps)) + 1))


class Student(nn.Module):
    """The trained model and one projector for each chosen stage.

    The model comes ready built and projectors are drawn after it: its initial weights do not depend on which
    projectors there are.

    Args:
        model: as `build_model` gives it.
        num_classes: logits.
        img_size: pixels, the side.
        stages: which stages are tapped, of `available_stages`; empty for none.
        taps: as for `stages_of`.
        projector: "conv", "token", "pooled", or "auto": conv for a pyramid of three or more resolutions, else token, as
            the official implementation has it.
        needs: what `forward` gives besides logits: `STAGE_LOGITS` (projectors are built for these alone),
            `STUDENT_FEATURES`, `STUDENT_EMBEDDING`.

    Attributes:
        model: the student proper, the part that is delivered.
        projectors: by stage number, as text.
        stages: those tapped, none where neither their logits nor their features are needed.
        feature_shapes: stage to (channels, height, width).

    Raises:
        InputError: a stage that the model has not, or bad taps.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        img_size: int,
        stages: list[int],
        taps: Taps = "ofakd",
        projector: Literal["auto", "conv", "token", "pooled"] = "auto",
        needs: Collection[str] = (STAGE_LOGITS,),
    ):
        super().__init__()
        self.model, self.needs = model, frozenset(needs)
        self.stages = sorted(set(stages)) if self.needs & {STAGE_LOGITS, STUDENT_FEATURES} else []
        self.projectors, self.feature_shapes = nn.ModuleDict(), {}
        indices, available = stages_of(model, taps), available_stages(model, taps)
        if unknown := [stage for stage in self.stages if stage not in available]:
            raise InputError(
                f"stages={self.stages}: {model.pretrained_cfg.get('architecture')} has stages "
                f"{', '.join(map(str, available)) or 'of no kind'}; leave out {', '.join(map(str, unknown))}"
            )
        self.indices = [indices[stage - 1] for stage in self.stages]
        if not self.stages:
            return
        # shapes are looked up, never tabled: stems pad in their own ways
        _, features = probe(model, img_size)
        shapes = [tuple(features[index].shape[1:]) for index in self.indices]
        self.feature_shapes = dict(zip(self.stages, shapes, strict=True))
        if STAGE_LOGITS not in self.needs:
            return
        if projector == "auto":
            projector = "conv" if len({feature.shape[2:] for feature in features}) >= PYRAMID else "token"
        for stage, (channels, *grid) in self.feature_shapes.items():
            if projector == "token":
                branch = TokenProjector(channels, tuple(grid), stage, num_classes, model.num_features)
            elif projector == "pooled":
                branch = PooledProjector(channels, num_classes)
            else:
                branch = ConvProjector(channels, stage, model.num_features, num_classes, len(available))
            self.projectors[str(stage)] = branch

    def forward(self, x: Tensor) -> StudentOutput:
        """[B, 3, H, W] to the model's logits, [B, num_classes], and what `needs` names."""
        if not self.stages and STUDENT_EMBEDDING not in self.needs:
            return StudentOutput(self.model(x))
        final, features = self.model.forward_intermediates(x, indices=self.indices or 1)
        logits = self.model.forward_head(final)
        tapped = dict(zip(self.stages, features, strict=True)) if self.stages else {}
        return StudentOutput(
            logits,
            {int(stage): projector(tapped[int(stage)]) for stage, projector in self.projectors.items()},
            pooled_embedding(self.model, final) if STUDENT_EMBEDDING in self.needs else None,
            tapped if STUDENT_FEATURES in self.needs else {},
        )

    def no_weight_decay(self) -> set[str]:
        """The model's own exemptions from weight decay, by their names in here; timm's optimizers ask for them."""
        own = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else ()
        return {f"model.{name}" for name in own}
