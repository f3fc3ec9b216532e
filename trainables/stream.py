"""The deterministic stream of batches, and plain batches for evaluation.

The order of images, every image's augmentation and every batch's mixup are functions of (seed, epoch, position)
alone: the same for any number of workers and loader processes, and after a resume.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader

from trainables.augmentation import FOR_ORDER, BatchAugmentation, ImageAugmentation, random_bits
from trainables.config import TrialConfig
from trainables.data import ImageList
from trainables.errors import InputError
from trainables.prefetch import Tensors, on_device

SMALL_SIDE = 64  # pixels; evaluation shows smaller images whole, larger ones as timm's central crop


class TrainStream:
    """One rank's part of the stream; made by `train_loader`. One epoch is read at a time.

    Loader processes go on with the next epoch while an epoch's end is judged and reported.

    Attributes:
        batch_size: images a step over all ranks.
        slots: int64 [batch_size / world_size], the places of a global batch that this rank holds, ascending and
            symmetric (i and batch_size - 1 - i), because timm's mixup pairs these two.
        view: of an epoch's number, which epoch's batches it has: its own, but for the recipe's `views`.
    """

    def __init__(
        self,
        batches: "_TrainBatches",
        finish: BatchAugmentation,
        keys: "_Keys",
        workers: int,
        device: torch.device,
    ):
        self.batch_size, self.slots, self.view = keys.batch_size, keys.slots, keys.view
        self._finish, self._keys, self._device = finish, keys, device
        self._bringing = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._loader = _loader(batches, keys, workers, pinned=device.type == "cuda")
        self._loaded, self._follows = None, None  # what is being read, and the epoch that comes next in it

    def __len__(self) -> int:
        """Steps an epoch; the images that fill no whole batch are left out, others in each epoch."""
        return len(self._keys)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Tensors]:
        """The batches of an epoch, which counts from 0, on the device.

        Args:
            first: the step to begin with; those before it are not read.

        Yields:
            images, float32 [b, 3, H, W], normalised, b = batch_size / world_size; and classes, int64 [b], or with
            mixup or cutmix mixed and smoothed labels, float32 [b, num_classes]; and the images' places in the split,
            int64 [b].

        Raises:
            InputError: an image's file is broken.
        """
        if first or self._follows != epoch or epoch not in self._keys.epochs:
            self._keys.begin(epoch, first)
            self._loaded = iter(self._loader)
        self._follows = None  # an epoch that is left early is begun anew

        def bring(step: int, loaded: Tensors) -> Tensors:
            *loaded, target, index = (tensor.to(self._device, non_blocking=True) for tensor in loaded)
            return *self._finish(tuple(loaded), target, self.view(epoch), first + step), index

        yield from on_device(_raising(islice(self._loaded, len(self) - first)), bring, self._bringing)
        self._follows = epoch + 1

    def close(self) -> None:
        """Ends the loader's processes."""
        _end_processes(self._loader)


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
    device: torch.device | str = "cpu",
) -> TrainStream:
    """The training stream, augmented by timm's transforms and mixed by timm's mixup (mode 'batch').

    A split smaller than `batch_size` is served in the largest batches that fit and divide over the workers, so that an
    epoch has at least one step.

    Args:
        config: the recipe's augmentation, `batch_size` (over all workers), `img_size` and `loader_workers`.
        mean, std: of the model's normalisation, three values between 0 and 1 each.
        seed: decides order, augmentation and mixup.
        num_classes: width of mixed labels.
        device: where the batches are wanted.

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
    batches, device = _TrainBatches(split, ImageAugmentation(config, seed)), torch.device(device)
    finish = BatchAugmentation(config, mean, std, seed, num_classes, device)
    half = batch_size // least
    first = np.arange(rank * half, (rank + 1) * half)
    slots = np.concatenate([first, batch_size - 1 - first[::-1]])
    keys = _Keys(len(split), batch_size, slots, seed, config.epochs, config.store_mode.views)
    return TrainStream(batches, finish, keys, config.loader_workers, device)


class _EvalLoader:
    """Its loader processes wait for the next reading, until it is forgotten."""

    def __init__(self, loader: DataLoader):
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Tensors]:
        try:
            yield from _raising(self._loader)
        except BaseException:  # left early, or a process died: the next reading begins with others
            _end_processes(self._loader)
            raise


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
    batches = _EvalBatches(split, EvalTransform(img_size, mean, std))
    return _EvalLoader(_loader(batches, keys, loader_workers))


class EvalTransform:
    """How evaluation shows an image, PIL to float32 [3, img_size, img_size], see `eval_loader`; pickles."""

    def __init__(self, img_size: int, mean: tuple[float, ...], std: tuple[float, ...]):
        self._small = max(SMALL_SIDE, img_size)
        self._whole = create_transform(img_size, crop_pct=1.0, crop_mode="squash", mean=mean, std=std)
        self._centre = create_transform(img_size, mean=mean, std=std)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return (self._whole if min(image.size) <= self._small else self._centre)(image)


class _Keys:
    """What the loader turns into batches, epoch after epoch: (epoch, this rank's positions, their images).

    Args:
        views: after so many epochs the first one's batches come again; None for never.

    Attributes:
        epochs: those that are read in one go.
        first: the step of the first of them that is read first.
    """

    def __init__(self, images: int, batch_size: int, slots: np.ndarray, seed: int, epochs: int, views: int | None):
        self.images, self.batch_size, self.slots, self.seed = images, batch_size, slots, seed
        self.until, self.views, self.epochs, self.first = epochs, views, range(epochs), 0

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        return islice(chain.from_iterable(map(self._of, map(self.view, self.epochs))), self.first, None)

    def begin(self, epoch: int, first: int) -> None:
        self.epochs, self.first = range(epoch, max(self.until, epoch + 1)), first

    def view(self, epoch: int) -> int:
        return epoch % self.views if self.views else epoch

    def _of(self, epoch: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        order = np.random.default_rng(random_bits(self.seed, epoch, 0, FOR_ORDER)).permutation(self.images)
        for step in range(len(self)):
            positions = step * self.batch_size + self.slots
            yield epoch, positions, order[positions]


class _Batches:
    """A map from keys to whole batches, for torch's loader; pickles."""

    def __getitem__(self, key) -> Tensors | InputError:
        try:
            return self.make(key)
        except InputError as error:
            return error  # raised by the reader: torch would wrap it in a traceback's text


class _TrainBatches(_Batches):
    def __init__(self, split: ImageList, augment: ImageAugmentation):
        self.split, self.augment = split, augment

    def make(self, key: tuple[int, np.ndarray, np.ndarray]) -> Tensors:
        epoch, positions, indices = key
        images = [partial(self.split.image, index) for index in indices]
        return (
            *self.augment(images, epoch, positions),
            torch.from_numpy(self.split.targets[indices]),
            torch.from_numpy(indices),
        )


class _EvalBatches(_Batches):
    def __init__(self, split: ImageList, transform: EvalTransform):
        self.split, self.transform = split, transform

    def make(self, key: np.ndarray) -> Tensors:
        tensors = [self.transform(self.split.image(index)) for index in key]
        return torch.stack(tensors), torch.from_numpy(self.split.targets[key])


def _loader(batches: _Batches, keys, workers: int, pinned: bool = False) -> DataLoader:
    return DataLoader(
        batches,
        batch_size=None,  # a key is a whole batch already
        sampler=keys,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pinned,
        generator=torch.Generator(),  # torch draws its workers' seeds here, not from the process's generator
    )


def _end_processes(loader: DataLoader) -> None:
    """Torch offers no public way; reading the loader again starts others."""
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()
        loader._iterator = None


def _raising(batches: Iterable[Tensors | InputError]) -> Iterator[Tensors]:
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield tuple(batch)
