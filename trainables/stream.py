"""The deterministic stream of batches, and plain batches for evaluation.

The order of images, every image's augmentation and every batch's mixup are functions of (seed, epoch, position)
alone: the same for any number of workers and loader processes, and after a resume.
"""

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import posterize
from torch.utils.data import DataLoader

from trainables.config import TrialConfig
from trainables.data import ImageList
from trainables.errors import InputError

FOR_ORDER, FOR_IMAGE, FOR_MIXUP = range(3)  # each kind of draw has random numbers of its own
SMALL_SIDE = 64  # pixels; evaluation shows smaller images whole, larger ones as timm's central crop

Batch = tuple[torch.Tensor, ...]


class TrainStream:
    """One rank's part of the stream; made by `train_loader`. One epoch is read at a time.

    Args:
        views: after so many epochs the first one's batches come again; None for never.

    Attributes:
        batch_size: images a step over all ranks.
        slots: int64 [batch_size / world_size], the places of a global batch that this rank holds, ascending and
            symmetric (i and batch_size - 1 - i), because timm's mixup pairs these two.
    """

    def __init__(self, batches: "_TrainBatches", keys: "_Keys", workers: int, views: int | None = None):
        self.batch_size, self.slots = keys.batch_size, keys.slots
        self._keys, self._views = keys, views
        self._loader = _loader(batches, keys, workers, persistent=True)

    def __len__(self) -> int:
        """Steps an epoch; the images that fill no whole batch are left out, others in each epoch."""
        return len(self._keys)

    def view(self, epoch: int) -> int:
        """Which epoch's batches an epoch has: its own, but for `views`."""
        return epoch % self._views if self._views else epoch

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, which counts from 0.

        Yields:
            images, float32 [b, 3, H, W], normalised, b = batch_size / world_size; and classes, int64 [b], or with
            mixup or cutmix mixed and smoothed labels, float32 [b, num_classes]; and the images' places in the split,
            int64 [b].

        Raises:
            InputError: an image's file is broken.
        """
        self._keys.epoch = self.view(epoch)
        yield from _raising(self._loader)

    def close(self) -> None:
        """Ends the loader's processes; the stream is not read again."""
        if self._loader._iterator is not None:  # torch offers no public way
            self._loader._iterator._shutdown_workers()


def train_loader(
    split: ImageList,
    config: TrialConfig,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    rank: int,
    world_size: int,
    seed: int,
    num_classes: int,
) -> TrainStream:
    """The training stream, augmented by timm's transforms and mixed by timm's mixup (mode 'batch').

    A split smaller than `batch_size` is served in the largest batches that fit and divide over the workers, so that an
    epoch has at least one step.

    Args:
        config: the recipe's augmentation, `batch_size` (over all workers), `img_size` and `loader_workers`.
        mean, std: of the model's normalisation, three values between 0 and 1 each.
        seed: decides order, augmentation and mixup.
        num_classes: width of mixed labels.

    Raises:
        InputError: `batch_size` is no multiple of 2 * world_size, the split is smaller than that, or timm knows no such
            augmentation.
    """
    least = 2 * world_size
    if config.batch_size % least:
        raise InputError(
            f"batch_size={config.batch_size} does not divide into equal, even parts over "
            f"workers_per_trial={world_size}: give a multiple of {least}"
        )
    batch_size = min(config.batch_size, len(split) // least * least)
    if batch_size == 0:
        raise InputError(
            f"data={config.data!r} gives {len(split)} training image(s) and workers_per_trial={world_size} needs "
            f"{least} or more: raise labels_per_class or max_images, or use fewer workers"
        )
    try:
        augment = create_transform(
            config.img_size,
            is_training=True,
            scale=tuple(config.crop_scale),
            ratio=tuple(config.crop_ratio),
            hflip=config.hflip,
            color_jitter=config.color_jitter,
            auto_augment=config.aa,
            re_prob=config.reprob,
            re_mode="pixel",
            interpolation=config.train_interpolation,
            mean=mean,
            std=std,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(
            f"aa={config.aa!r} or train_interpolation={config.train_interpolation!r} is unknown to timm: give e.g. "
            "aa='rand-m9-mstd0.5-inc1' and train_interpolation='bilinear'"
        ) from error
    _allow_zero_bits(augment)
    mixup = None
    if config.mixup or config.cutmix:
        mixup = Mixup(
            config.mixup,
            config.cutmix,
            prob=config.mixup_prob,
            switch_prob=config.mixup_switch_prob,
            label_smoothing=config.smoothing,
            num_classes=num_classes,
        )
    half = batch_size // least
    first = np.arange(rank * half, (rank + 1) * half)
    slots = np.concatenate([first, batch_size - 1 - first[::-1]])
    keys = _Keys(len(split), batch_size, slots, seed)
    batches = _TrainBatches(split, seed, augment, mixup)
    return TrainStream(batches, keys, config.loader_workers, config.store_mode.views)


class _EvalLoader:
    def __init__(self, loader: DataLoader):
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return _raising(self._loader)


def eval_loader(
    split: ImageList,
    img_size: int,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    loader_workers: int = 0,
) -> _EvalLoader:
    """A rank's batches of a split in its order, without augmentation; no image is dropped, the last batch is short.

    Images with a side of at most 64 pixels, or at most `img_size`, are resized whole; others get timm's evaluation
    transform (the short side resized to img_size / 0.875, then the centre).

    Args:
        mean, std: of the model's normalisation, three values between 0 and 1 each.
        batch_size: images a batch on this rank.

    Returns:
        An iterable, again and again, of images, float32 [b, 3, img_size, img_size], and classes, int64 [b].
    """
    share = np.arange(len(split))[rank::world_size]
    keys = [share[at : at + batch_size] for at in range(0, len(share), batch_size)]
    whole = create_transform(img_size, crop_pct=1.0, crop_mode="squash", mean=mean, std=std)
    centre = create_transform(img_size, mean=mean, std=std)
    batches = _EvalBatches(split, max(SMALL_SIDE, img_size), whole, centre)
    return _EvalLoader(_loader(batches, keys, loader_workers, persistent=False))


class _Keys:
    """What the loader turns into batches in one epoch: (epoch, step, this rank's positions, their images)."""

    def __init__(self, images: int, batch_size: int, slots: np.ndarray, seed: int):
        self.images, self.batch_size, self.slots, self.seed = images, batch_size, slots, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        epoch = self.epoch
        order = np.random.default_rng(_random_bits(self.seed, epoch, 0, FOR_ORDER)).permutation(self.images)
        for step in range(len(self)):
            positions = step * self.batch_size + self.slots
            yield epoch, step, positions, order[positions]


class _Batches:
    """A map from keys to whole batches, for torch's loader; pickles."""

    def __getitem__(self, key) -> Batch | InputError:
        try:
            return self.make(key)
        except InputError as error:
            return error  # raised by the reader: torch would wrap it in a traceback's text


class _TrainBatches(_Batches):
    def __init__(self, split: ImageList, seed: int, augment, mixup: Mixup | None):
        self.split, self.seed, self.augment, self.mixup = split, seed, augment, mixup

    def make(self, key: tuple[int, int, np.ndarray, np.ndarray]) -> Batch:
        epoch, step, positions, indices = key
        images = []
        with _own_random_numbers() as reseed:
            for position, index in zip(positions, indices, strict=True):
                reseed(_random_bits(self.seed, epoch, position, FOR_IMAGE))
                images.append(self.augment(self.split.image(index)))
            images, target = torch.stack(images), torch.from_numpy(self.split.targets[indices])
            if self.mixup:
                reseed(_random_bits(self.seed, epoch, step, FOR_MIXUP))
                images, target = self.mixup(images, target)
        return images, target, torch.from_numpy(indices)


class _EvalBatches(_Batches):
    def __init__(self, split: ImageList, small: int, whole, centre):
        self.split, self.small, self.whole, self.centre = split, small, whole, centre

    def make(self, key: np.ndarray) -> Batch:
        images = [self.split.image(index) for index in key]
        tensors = [(self.whole if min(image.size) <= self.small else self.centre)(image) for image in images]
        return torch.stack(tensors), torch.from_numpy(self.split.targets[key])


def _loader(batches: _Batches, keys, workers: int, persistent: bool) -> DataLoader:
    return DataLoader(
        batches,
        batch_size=None,  # a key is a whole batch already
        sampler=keys,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        generator=torch.Generator(),  # torch draws its workers' seeds here, not from the process's generator
    )


def _raising(loader: DataLoader) -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield tuple(batch)


def _allow_zero_bits(augment) -> None:
    """Lets timm's posterize keep 0 bits, which strong settings ask for and Pillow 13 refuses: a black image."""
    for step in augment.transforms:
        for op in chain.from_iterable(getattr(step, "policy", [getattr(step, "ops", [])])):
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_) -> Image.Image:
    return posterize(image, bits) if bits else Image.new(image.mode, image.size)


def _random_bits(seed: int, epoch: int, position: int, purpose: int) -> int:
    """64 bits that differ for each place of the stream."""
    place = struct.pack("<Qqqb", seed % 2**64, epoch, position, purpose)
    return int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "little")


@contextmanager
def _own_random_numbers():
    """Lends the three global generators that timm draws from, and gives them back as they were."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()

    def reseed(bits: int) -> None:
        random.seed(bits)
        np.random.seed(bits & 0xFFFFFFFF)
        torch.default_generator.manual_seed(bits)

    try:
        yield reseed
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
