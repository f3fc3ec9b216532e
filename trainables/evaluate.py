"""Judging a model on the holdout."""

import torch
import torch.nn.functional as F

from trainables.assets import Assets
from trainables.build import normalization
from trainables.config import TrialConfig
from trainables.context import RunContext


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, assets: Assets, config: TrialConfig, context: RunContext, agreement: bool = True
) -> dict[str, float]:
    """Accuracy of a bare model on the holdout, in evaluation mode; each rank judges its share.

    Args:
        model: maps images in its own normalisation to logits [B, C].
        agreement: whether to compare with the teacher, where a teacher stands.

    Returns:
        `top1`, `top5` and `agreement` in percent of the holdout's images (agreement: same class as the teacher), and
        the mean cross-entropy `loss`.
    """
    was_training = model.training
    model.eval()
    teacher_classes = assets.teacher_classes(config, context) if agreement else None
    sums = torch.zeros(5, device=context.device, dtype=torch.float64)
    at = 0
    for images, target in assets.holdout(config, context, *normalization(model)):
        images, target = images.to(context.device), target.to(context.device)
        logits = model(images).float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        sums[0] += len(target)
        sums[1] += (ranked[:, 0] == target).sum()
        sums[2] += (ranked == target[:, None]).sum()
        sums[3] += F.cross_entropy(logits, target, reduction="sum")
        if teacher_classes is not None:
            sums[4] += (ranked[:, 0] == teacher_classes[at : at + len(target)].to(context.device)).sum()
        at += len(target)
    model.train(was_training)
    count, top1, top5, loss, agreed = context.sum(sums).tolist()
    metrics = {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": loss / count}
    return metrics | ({"agreement": 100 * agreed / count} if teacher_classes is not None else {})
