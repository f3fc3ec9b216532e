"""How sure the difference of two models is that were trained over the same seeds.

Two things are drawn at random: the training, by its seed, and the test split's images. The models are paired in both,
since those of one seed see the same stream and all see the same test images. For top-1 accuracy the error of a
difference is therefore the sum of two variances: that of the seeds' mean differences over the number of seeds, and that
of the images' (each averaged over the seeds) over the number of images. The interval and the p-value are Student's t
with Satterthwaite's degrees of freedom (1946). A few seeds may agree by chance; so the variance over the seeds is not
taken for smaller than its mean over all pairs of models that were trained over them, and two seeds alone are never
surer than their own paired t-test. One seed tests nothing: equal configurations differ by more than their images tell.
Other metrics leave the seeds alone: a t-test over them.
"""

import itertools
import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

NORMAL_95 = 1.96  # standard errors in half a 95% interval


@dataclass(frozen=True)
class Summary:
    """Some runs' values of a metric: how many, their mean, standard deviation and 95% interval of the mean (Student's
    t); of one run there is no deviation."""

    count: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Tested:
    """A mean of paired differences and how sure it is.

    Attributes:
        seeds: how many pairs.
        difference: their mean.
        low, high: its 95% interval; None where there is none.
        p: of its being 0; None where nothing could be tested.
        method: how it was tested.
    """

    seeds: int
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    method: str = ""


def summary(values: list[float]) -> Summary:
    """Mean, deviation and interval of one value or more."""
    from scipy import stats

    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(len(values), mean, None, None, None)
    deviation = statistics.stdev(values)
    half = stats.t.ppf(1 - 0.05 / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return Summary(len(values), mean, deviation, mean - half, mean + half)


def pooled(models: list[list[float]]) -> tuple[float, int] | None:
    """The variance over seeds of the difference of two models, the mean over all pairs, and its degrees of freedom.

    Args:
        models: each one's metric by seed, all over the same seeds; None is returned of fewer than 3 or one seed.
    """
    seeds = len(models[0]) if models else 0
    if len(models) < 3 or seeds < 2:
        return None
    pairs = itertools.combinations(models, 2)
    variances = [statistics.variance(x - y for x, y in zip(one, other, strict=True)) for one, other in pairs]
    return statistics.fmean(variances), (len(models) - 1) * (seeds - 1)


def paired(
    differences: list[float],
    by_image: "list[np.ndarray] | None" = None,
    spread: tuple[float, int] | None = None,
) -> Tested:
    """Tests whether the mean of paired differences is other than 0.

    Args:
        differences: one a seed, in the metric's units.
        by_image: of top-1 accuracy also one a test image for each seed, [seeds][images], whose means they are.
        spread: as `pooled` gives it, where more models than these two were trained.
    """
    mean, seeds = statistics.fmean(differences), len(differences)
    if seeds == 1:  # that two networks differ says nothing of the next two
        return Tested(1, mean, method="one seed, so nothing is tested")
    own = (statistics.variance(differences), seeds - 1)
    variance, freedom = spread if spread and spread[0] > own[0] else own
    errors, method = [(variance / seeds, freedom)], "t-test over the seeds"
    if by_image is not None:
        images = sum(by_image) / seeds
        errors.append((float(images.var(ddof=1)) / len(images), len(images) - 1))
        method = "t-test over seeds and images"
    found = Tested(seeds, mean, *_student(mean, errors), f"paired {method}")
    if seeds > 2:
        return found
    alone = Tested(seeds, mean, *_student(mean, [(own[0] / seeds, own[1])]), "paired t-test over the seeds")
    if found.p is None or (alone.p is not None and alone.p <= found.p):
        return found
    if alone.p is not None and found.high - found.low > alone.high - alone.low:
        return replace(alone, low=found.low, high=found.high)  # two that agree by chance have a short one
    return alone


def holm(values: list[float | None]) -> list[float | None]:
    """Holm's correction (1979) of p-values for their number; None stays None and is not counted."""
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected


def _student(mean: float, errors: list[tuple[float, int]]) -> tuple[float | None, float | None, float | None]:
    """The 95% interval and the p-value of a mean from its variance's parts and their degrees of freedom.

    A mean that does not vary at all is no proof: a few seeds agree by chance where a metric is coarse.
    """
    from scipy import stats

    variance = sum(part for part, _ in errors)
    if variance == 0:
        return None, None, 1.0 if mean == 0 else None
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in errors)
    half = stats.t.ppf(1 - 0.05 / 2, freedom) * math.sqrt(variance)
    return mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / math.sqrt(variance), freedom))
