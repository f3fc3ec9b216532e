"""How alike two models' layers are: linear CKA between all of them, estimated from minibatches; and their agreement.

The picture that motivates OFA-KD (its Figure 2): layers of one architecture resemble each other at equal depth, layers
of different architectures do not. The estimator is that of Nguyen, Raghu and Kornblith, "Do Wide and Deep Networks
Learn the Same Things?" (ICLR 2021, section 2), over linear CKA (Kornblith et al., ICML 2019).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from trainables.build import normalization
from trainables.errors import InputError

LEAST_BATCH = 4  # images; unbiased HSIC divides by n - 3
LOGITS = "logits"
ROUNDING = 4  # units in the last place: images that differ by no more are the same


def check_batch(images: int) -> None:
    """Whether a batch is large enough for the estimator.

    Raises:
        InputError: it is not.
    """
    if images < LEAST_BATCH:
        raise InputError(f"batch_size: unbiased HSIC needs {LEAST_BATCH} or more images a batch, not {images}")


def centered_gram(features: Tensor) -> Tensor:
    """A layer's U-centred linear Gram matrix on one batch; inner products of two of them are unbiased HSIC.

    With K = X Xᵀ and its diagonal set to zero, U(K) subtracts row and column sums over n - 2 and adds the total over
    (n - 1)(n - 2), off the diagonal (Székely and Rizzo, "Partial distance correlation with methods for
    dissimilarities", 2014, equation 2.2). Then <U(K), U(L)> / (n (n - 3)) is HSIC_1 of Song et al., "Feature
    Selection via Dependence Maximization" (JMLR 2012, equation 5),

        [tr(K L) + 1ᵀK1 1ᵀL1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1ᵀK L1] / (n (n - 3)),

    without its differences of large numbers: all centring is done before anything is multiplied.

    Args:
        features: [n, ...], any floating type; flattened to one row an image.

    Returns:
        [n, n] float64. The matrix product runs in float32 (float64 for float64) on differences from the first image,
        scaled to at most 1: neither a large mean nor large values cost precision or overflow, and U(K) is the same.
        All zeros where the images' features do not differ.

    Raises:
        InputError: fewer than 4 images.
    """
    n = len(features)
    check_batch(n)
    rows = features.detach().flatten(1)
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows if rows.dtype == torch.float64 else rows.float()
        largest = rows.abs().amax()
        rows = rows - rows[:1]
        spread = rows.abs().amax()
        if largest.isfinite() and spread <= ROUNDING * torch.finfo(rows.dtype).eps * largest:
            return torch.zeros(n, n, dtype=torch.float64, device=rows.device)
        rows /= spread
        gram = (rows @ rows.T).double() * spread.double() ** 2
    gram.fill_diagonal_(0)
    sums = gram.sum(dim=1) / (n - 2)
    gram = gram - sums[:, None] - sums + sums.sum() / (n - 1)
    return gram.fill_diagonal_(0)


class LinearCKA:
    """Linear CKA between all pairs of layers from batches, in memory that does not grow with their number.

    Each batch gives an unbiased HSIC for every pair; these are averaged over the batches, and only then comes the
    ratio (Nguyen et al., 2021, equations 2 and 3):

        CKA(X, Y) = mean HSIC_1(X, Y) / sqrt(mean HSIC_1(X, X) · mean HSIC_1(Y, Y)).

    A batch counts by its images, so that a short last one adds no noise; batches of one size count equally, as in the
    paper. The estimate lies in [-1, 1], a little below 0 for unrelated layers; batches should be drawn at random.
    """

    def __init__(self):
        self._hsic: Tensor | None = None  # [L, L] float64, the images' weighted sum

    @torch.no_grad()
    def update(self, layers: Sequence[Tensor]) -> None:
        """Adds one batch.

        Args:
            layers: each [n, ...] on the same n images, in the same order of layers every time.

        Raises:
            InputError: fewer than 4 images.
        """
        n = len(layers[0])
        grams = torch.stack([centered_gram(layer).flatten() for layer in layers])
        hsic = grams @ grams.T / (n * (n - 3))
        self._hsic = n * hsic + (0 if self._hsic is None else self._hsic)

    def matrix(self) -> Tensor:
        """[L, L] float64 on the CPU, symmetric.

        NaN in the rows and columns of a layer whose features are the same for all images of every batch (its HSIC is
        0, so the ratio is undefined), or are not finite.
        """
        hsic = self._hsic.cpu()
        own = hsic.diagonal().sqrt()
        return hsic / (own[:, None] * own)


@dataclass(frozen=True)
class Comparison:
    """What two models make of the same images.

    Attributes:
        teacher_layers, student_layers: names, shallow to deep, `logits` last.
        cka: [T, S] float64, between the teacher's and the student's layers; NaN as in `LinearCKA.matrix`.
        teacher_cka, student_cka: [T, T] and [S, S], each model with itself.
        images: how many were seen.
        agreement: percent of them to which both give the same class; None where they have different numbers of classes.
        teacher_top1, student_top1: percent; None where the model has not the labels' number of classes.
    """

    teacher_layers: list[str]
    student_layers: list[str]
    cka: Tensor
    teacher_cka: Tensor
    student_cka: Tensor
    images: int
    agreement: float | None
    teacher_top1: float | None
    student_top1: float | None


def layer_names(model: nn.Module) -> list[str]:
    """The names of a model's features, as in its `feature_info`, and of its logits.

    Where a module gives several features (CrossViT's branches), the later ones are numbered: `blocks.0`, `blocks.0#2`.
    """
    modules = [info["module"] for info in model.feature_info]
    times = [modules[: place + 1].count(module) for place, module in enumerate(modules)]
    names = [module if time == 1 else f"{module}#{time}" for module, time in zip(modules, times, strict=True)]
    return [*names, LOGITS]


def layer_outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """All features [n, ...] of normalised images [n, 3, S, S], and the logits [n, C], by one pass."""
    final, features = model.forward_intermediates(images)
    return [*features, model.forward_head(final)]


@torch.no_grad()
def compare(
    teacher: nn.Module,
    student: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Compares all layers of two models, and their classes, over batches in random order.

    A batch of fewer than 4 images (the last may be one) counts for the classes and not for CKA.

    Args:
        teacher, student: bare models on the device; put into evaluation mode.
        batches: images, float32 [n, 3, S, S] in 0 to 1, as each model gets them in its own normalisation; and
            classes, int64 [n].
        num_classes: of the labels.
        device: where the models are.

    Raises:
        InputError: no batch had 4 images.
    """
    models = [teacher.eval(), student.eval()]
    scales = [tuple(torch.tensor(part, device=device).view(-1, 1, 1) for part in normalization(m)) for m in models]
    similarity, names = LinearCKA(), [layer_names(model) for model in models]
    images = used = agreed = 0
    right, classes = [0, 0], [0, 0]
    for pixels, target in batches:
        pixels, target = pixels.to(device), target.to(device)
        outputs = [layer_outputs(m, (pixels - mean) / std) for m, (mean, std) in zip(models, scales, strict=True)]
        if len(pixels) >= LEAST_BATCH:
            similarity.update(outputs[0] + outputs[1])
            used += len(pixels)
        predicted = [layers[-1].argmax(dim=1) for layers in outputs]
        classes = [layers[-1].shape[1] for layers in outputs]
        right = [count + int((chosen == target).sum()) for count, chosen in zip(right, predicted, strict=True)]
        agreed += int((predicted[0] == predicted[1]).sum())
        images += len(pixels)
    check_batch(used)
    matrix, split = similarity.matrix(), len(names[0])
    top1 = [100 * count / images if of == num_classes else None for count, of in zip(right, classes, strict=True)]
    return Comparison(
        *names,
        cka=matrix[:split, split:],
        teacher_cka=matrix[:split, :split],
        student_cka=matrix[split:, split:],
        images=images,
        agreement=100 * agreed / images if classes[0] == classes[1] else None,
        teacher_top1=top1[0],
        student_top1=top1[1],
    )


def summary(cka: Tensor) -> dict[str, float]:
    """A few plain numbers of a [T, S] matrix of similarities, layers that have none (NaN) left out.

    Returns:
        `cka/mean` over all pairs; `cka/same_depth`, over each layer of the model that has more and the other's at the
        nearest relative depth, the logits with the logits; `cka/closest`, over the student's layers and whichever layer
        of the teacher is most alike; `cka/logits`, between the logits. NaN where nothing is left.
    """
    rows, columns = cka.shape
    longest = max(rows, columns)
    features = [
        (round(i * (rows - 2) / max(longest - 2, 1)), round(i * (columns - 2) / max(longest - 2, 1)))
        for i in range(longest - 1)
    ]
    same_depth = torch.stack([cka[row, column] for row, column in [*features, (-1, -1)]])
    closest = cka.nan_to_num(nan=-math.inf).amax(dim=0)
    return {
        "cka/mean": cka.nanmean().item(),
        "cka/same_depth": same_depth.nanmean().item(),
        "cka/closest": closest[closest.isfinite()].mean().item(),
        "cka/logits": cka[-1, -1].item(),
    }
