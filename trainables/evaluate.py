"""Judging a model on the holdout, or on the test split."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from trainables.acceleration import precision, uncompiled
from trainables.assets import Assets
from trainables.build import normalization
from trainables.config import TrialConfig
from trainables.context import RunContext
from trainables.metrics import Predictions, figures, own_metrics


def evaluate(
    model: torch.nn.Module,
    assets: Assets,
    config: TrialConfig,
    context: RunContext,
    *,
    agreement: bool = True,
    part: str = "holdout",
    look: Callable[[Predictions], object] = lambda predictions: None,
) -> dict[str, float]:
    """The figures of a bare model on a split, in evaluation mode; each rank judges its share, all get the same.

    Args:
        model: maps images in its own normalisation to logits [B, C].
        agreement: whether to compare with the teacher, where a teacher stands.
        part: `holdout` or `test`.
        look: called on rank 0 with what the model said of each image.

    Returns:
        As `trainables.metrics.figures`, with the user's `metrics`.

    Raises:
        InputError: there is no such split, or a metric of the user's fails.
    """
    own = own_metrics(config.metrics)
    was_training = model.training
    model.eval()
    with uncompiled(config):
        share = _predict(model, assets, config, context, agreement, part, keep_logits=bool(own))
    model.train(was_training)
    parts = context.gather(share)

    def judge() -> dict[str, float]:
        predictions = _in_order(parts, len(assets.splits(config).classes))
        look(predictions)
        return figures(predictions, own)

    return context.from_rank_0(judge)


@torch.no_grad()
def _predict(model, assets, config, context, agreement, part, keep_logits) -> dict[str, torch.Tensor]:
    """What the model says of this rank's images, one entry an image, on the CPU."""
    teacher_classes = assets.teacher_classes(config, context, part) if agreement else None
    found: dict[str, list[torch.Tensor]] = {}
    for images, target in assets.images(part, config, context, *normalization(model)):
        images = images.to(context.device, copy=True)  # a model of one's own may change them in place
        target = target.to(context.device)
        with precision(config, context.device):
            logits = model(images)
        logits = logits.float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        batch = {
            "target": target,
            "predicted": ranked[:, 0],
            "confidence": logits.softmax(1).amax(1),
            "in_top5": (ranked == target[:, None]).any(1),
            "loss": F.cross_entropy(logits, target, reduction="none").double(),
        }
        for name, tensor in (batch | ({"logits": logits} if keep_logits else {})).items():
            found.setdefault(name, []).append(tensor)  # on the device: no wait in the loop
    whole = {name: torch.cat(tensors).cpu() for name, tensors in found.items()}
    if teacher_classes is not None and whole:
        whole["agreed"] = whole["predicted"] == teacher_classes
    return whole


def _in_order(parts: list[dict[str, torch.Tensor]], classes: int) -> Predictions:
    """All ranks' shares in the split's order: a rank has every so-many-th image, see `eval_loader`."""
    parts = [part for part in parts if part]  # a rank without an image has nothing
    count = sum(len(part["target"]) for part in parts)
    whole = {}
    for name, first in parts[0].items():
        tensor = whole[name] = torch.empty((count, *first.shape[1:]), dtype=first.dtype)
        for rank, part in enumerate(parts):
            tensor[rank :: len(parts)] = part[name]
    return Predictions(**{"agreed": None, "logits": None} | whole, classes=classes)
