"""From `DataFields` to splits of images: who trains on what, what ranks trials and what is kept for the end.

Every draw is stratified by class and depends on the data and `data_seed` alone, so all workers and all trials of a
study see the same splits without talking to each other.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from trainables.config import DataFields
from trainables.errors import InputError
from trainables.sources import FilesSource, ImageList, PixelsSource, known_names, read

__all__ = ["ImageList", "Splits", "known_names", "load_splits", "synthetic_splits"]

TEST_SHARE = 0.2  # of the images of a data set that brings no test split
MEMORY_LIMIT = 512 * 2**20  # bytes; folders that decode to less live decoded in memory
FINGERPRINT_IMAGES = 32  # images of each split whose pixels enter the fingerprint
FOR_TEST, FOR_HOLDOUT, FOR_BUDGET, FOR_CAP = range(4)  # each draw has random numbers of its own


@dataclass(frozen=True, eq=False)
class Splits:
    """Who sees which images; `test` is None only where the classes are too small to spare one.

    Attributes:
        train: the student's images, a part of `teacher_train`; with `train_with_holdout` the holdout's too.
        teacher_train: the training split without the holdout.
        holdout: ranks trials; no training image is in it, but for a delivery's.
        fingerprint: 16 hexadecimal digits that differ for other data or other splits.
    """

    train: ImageList
    teacher_train: ImageList
    holdout: ImageList
    test: ImageList | None
    classes: list[str]
    fingerprint: str
    description: str

    @property
    def in_memory(self) -> bool:
        """Whether all images are decoded in memory."""
        parts = (self.teacher_train, self.holdout, self.test)
        return all(part.source.in_memory for part in parts if part is not None)


def load_splits(fields: DataFields) -> Splits:
    """Reads the data set and draws its splits; downloads nothing.

    Args:
        fields: the data's fields of a trial or a study.

    Returns:
        The splits. With `max_images`, each has at most that many images, spread evenly over the classes.

    Raises:
        InputError: the data are unknown, missing, broken, or too few for a holdout.
    """
    return _draw_splits(fields, *read(fields))


def synthetic_splits(fields: DataFields, num_classes: int, images_per_class: int = 20) -> Splits:
    """Random images of side `img_size` in place of data that are not at hand; for dry runs.

    Args:
        num_classes: classes.
        images_per_class: training images of each before `max_images`; a fourth as many for testing.
    """
    noise = np.random.default_rng(0).integers(0, 256, (16, fields.img_size, fields.img_size, 3), dtype=np.uint8)

    def images(each):
        numbers = np.arange(num_classes * each)
        return ImageList(PixelsSource(noise), numbers % len(noise), numbers % num_classes)

    train, test = images(images_per_class), images(images_per_class // 4)
    fields = fields.model_copy(update={"holdout": max(fields.holdout, 1 / images_per_class)})  # one of each class
    return _draw_splits(fields, "synthetic images (random pixels)", train, test, [str(i) for i in range(num_classes)])


def _draw_splits(fields: DataFields, name: str, train: ImageList, test: ImageList | None, classes: list[str]) -> Splits:
    if test is None:
        taken = _draw(train.targets, TEST_SHARE, len(classes), 0, FOR_TEST)
        train, test = train.subset(~taken), train.subset(taken)
    counts = np.bincount(train.targets, minlength=len(classes))
    if counts.min() < 2:
        raise InputError(
            f"data={fields.data!r}: class {classes[counts.argmin()]!r} has {counts.min()} training image(s) and a "
            "holdout needs 2 or more of each class; add images or remove the class"
        )
    held = _draw(train.targets, fields.holdout, len(classes), fields.data_seed, FOR_HOLDOUT)
    without = np.bincount(train.targets[held], minlength=len(classes)) == 0
    if without.any():
        least = int(counts[without].min())
        raise InputError(
            f"holdout={fields.holdout:g} leaves class {classes[np.argmax(without)]!r} without a holdout image; give "
            f"{math.ceil(50 / least) / 100:g} or more"
        )

    def capped(split):
        if fields.max_images is None or len(split) <= fields.max_images:
            return split
        ranks = _ranks(split.targets, len(classes), fields.data_seed, FOR_CAP)
        return split.subset(np.sort(np.argsort(ranks, kind="stable")[: fields.max_images]))

    holdout, teacher_train, test = capped(train.subset(held)), capped(train.subset(~held)), capped(test)
    student = teacher_train
    if fields.labels_per_class is not None:
        ranks = _ranks(teacher_train.targets, len(classes), fields.data_seed, FOR_BUDGET)
        student = teacher_train.subset(ranks < fields.labels_per_class)
    parts = {"train": student, "teacher_train": teacher_train, "holdout": holdout, "test": test}
    _decode_small([teacher_train, holdout, test])
    joined = student
    if fields.train_with_holdout:
        chosen = np.concatenate([student.indices, holdout.indices])
        joined = ImageList(student.source, chosen, np.concatenate([student.targets, holdout.targets]))
    return Splits(
        train=joined,
        teacher_train=teacher_train,
        holdout=holdout,
        test=test if len(test) else None,
        classes=classes,
        fingerprint=_fingerprint(name, classes, parts),
        description=f"{name}: {len(classes)} classes; images: " + ", ".join(f"{k} {len(v)}" for k, v in parts.items()),
    )


def _ranks(targets: np.ndarray, num_classes: int, seed: int, purpose: int) -> np.ndarray:
    """Each image's place within its class in a random order that (seed, purpose) decide."""
    order = np.random.default_rng([seed % 2**64, purpose]).permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    counts = np.bincount(targets, minlength=num_classes)
    ranks = np.empty(len(targets), dtype=np.int64)
    ranks[order] = np.arange(len(targets)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def _draw(targets: np.ndarray, share: float, num_classes: int, seed: int, purpose: int) -> np.ndarray:
    """Mask of a share of every class, rounded, that leaves at least one image (two for a test split) of the class."""
    counts = np.bincount(targets, minlength=num_classes)
    take = np.minimum(np.floor(share * counts + 0.5), counts - (2 if purpose == FOR_TEST else 1))
    return _ranks(targets, num_classes, seed, purpose) < take[targets]


def _decode_small(splits: list[ImageList]) -> None:
    encoded = [split for split in splits if isinstance(split.source, FilesSource)]
    if sum(split.source.decoded_bytes(split.indices) for split in encoded) <= MEMORY_LIMIT:
        for split in encoded:
            split.source.decode(split.indices)


def _fingerprint(name: str, classes: list[str], parts: dict[str, ImageList]) -> str:
    digest = hashlib.blake2b(repr((name, classes)).encode(), digest_size=8)
    for part, split in parts.items():
        digest.update(f"{part} {len(split)}".encode())
        digest.update(split.indices.astype("<i8").tobytes() + split.targets.astype("<i8").tobytes())
        for index in np.linspace(0, len(split) - 1, min(FINGERPRINT_IMAGES, len(split))).astype(int):
            image = split.image(index)
            digest.update(repr(image.size).encode() + image.tobytes())
    return digest.hexdigest()
