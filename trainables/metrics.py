"""How good predictions are: the figures of a split from what a model said of each of its images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from trainables.errors import InputError, one_line
from trainables.foreign import import_callable

BINS = 15  # of the calibration error


@dataclass(frozen=True)
class Predictions:
    """What a model said of a split's images, in the split's order, on the CPU.

    Attributes:
        target: [N] int64, the images' classes.
        predicted: [N] int64, the class of the largest logit.
        confidence: [N] float32, its softmax.
        in_top5: [N] bool, whether the class is among the five largest logits.
        loss: [N] float64, the cross-entropy.
        agreed: [N] bool, whether the teacher predicts the same class; None where there is no teacher.
        logits: [N, C] float32; None where nobody asked for them.
        classes: C.
    """

    target: Tensor
    predicted: Tensor
    confidence: Tensor
    in_top5: Tensor
    loss: Tensor
    agreed: Tensor | None
    logits: Tensor | None
    classes: int


def figures(predictions: Predictions, own: dict[str, Callable[[Tensor, Tensor], float]]) -> dict[str, float]:
    """All metrics of a split.

    Args:
        predictions: of every image.
        own: the user's metrics by name, each called with logits [N, C] and target [N].

    Returns:
        In percent `top1`, `top5`, `balanced_accuracy` (mean recall of the classes that the split has), `macro_f1` (mean
        F1 score of the classes that it has or that were said), both as scikit-learn defines them, `ece` (expected
        calibration error: confidence beside accuracy in 15 bins, Guo et al., 2017) and, with a teacher, `agreement`;
        the mean cross-entropy `loss`, which is the negative log-likelihood; and the user's as they come, nan where the
        loss is not finite.

    Raises:
        InputError: a metric of the user's fails or gives no number.
    """
    right = predictions.predicted == predictions.target
    recalls = [recall for recall in recall_by_class(predictions) if recall is not None]
    found = {
        "top1": _percent(right),
        "top5": _percent(predictions.in_top5),
        "loss": predictions.loss.mean().item(),
        "balanced_accuracy": sum(recalls) / len(recalls),
        "macro_f1": _macro_f1(predictions),
        "ece": _calibration_error(predictions.confidence, right),
    }
    if predictions.agreed is not None:
        found["agreement"] = _percent(predictions.agreed)
    if not math.isfinite(found["loss"]):  # the training diverged: the user's functions are not to blame
        return found | dict.fromkeys(own, math.nan)
    return found | {name: _call(name, metric, predictions) for name, metric in own.items()}


def recall_by_class(predictions: Predictions) -> list[float | None]:
    """The share in percent of each class's images that were given that class, by class; None for a class without."""
    right, has, _ = _counts(predictions)
    return [100 * one / count if count else None for one, count in zip(right.tolist(), has.tolist(), strict=True)]


def own_metrics(paths: list[str]) -> dict[str, Callable[[Tensor, Tensor], float]]:
    """The user's metrics by the name they are reported with, that of the function.

    Args:
        paths: `package.module:function` each.

    Raises:
        InputError: one cannot be imported.
    """
    return {path.rpartition(":")[2]: import_callable(path, "metrics") for path in paths}


def _call(name: str, metric: Callable[[Tensor, Tensor], float], predictions: Predictions) -> float:
    try:
        value = metric(predictions.logits, predictions.target)
        if hasattr(value, "item"):  # of a tensor or array with one element
            value = value.item()
    except (Exception, SystemExit) as error:  # the user's code
        raise InputError(
            f"metrics: {name}(logits, target) fails ({one_line(error)}); it must take logits [N, C] and classes [N] "
            "and give one number"
        ) from error
    if not isinstance(value, Real) or isinstance(value, bool) or math.isinf(value):
        raise InputError(
            f"metrics: {name}(logits, target) gives {value!r:.100}; it must give one finite number, or nan for none"
        )
    return float(value)


def _counts(predictions: Predictions) -> list[Tensor]:
    """By class, int64 [C]: how many of its images were given it, how many it has, and how many were given it in all."""
    right = predictions.target[predictions.predicted == predictions.target]
    return [one.bincount(minlength=predictions.classes) for one in (right, predictions.target, predictions.predicted)]


def _macro_f1(predictions: Predictions) -> float:
    right, has, said = _counts(predictions)
    either = has + said > 0
    return 100 * (2 * right[either].double() / (has + said)[either]).mean().item()


def _calibration_error(confidence: Tensor, right: Tensor) -> float:
    """The sum over the bins of |accuracy - confidence|, each by its share of the images, in percent."""
    bins = torch.bucketize(confidence, torch.linspace(0, 1, BINS + 1), right=True)
    return 100 * bins.bincount(weights=right.double() - confidence.double()).abs().sum().item() / len(right)


def _percent(which: Tensor) -> float:
    return 100 * which.double().mean().item()
