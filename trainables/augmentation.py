"""How training images are augmented: one by one where they are loaded, the rest by whole batches where they are used.

All of it is timm's, seeded. Loader processes hand over bytes, a fourth of what normalised images take.
"""

import struct
from collections.abc import Callable
from hashlib import blake2b
from itertools import chain

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import posterize
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.randomness import own_random_numbers

FOR_ORDER, FOR_IMAGE, FOR_MIXUP = range(3)  # each kind of draw has random numbers of its own

Loaded = tuple[Tensor, Tensor, Tensor]  # uint8 [b, H, W, 3]; int32 [n], which of its values are erased; float32 [n]


class ImageAugmentation:
    """What is done to images one by one; pickles, so that loader processes can hold it.

    Args:
        config: the recipe's augmentation, and `img_size`.
        seed: decides every draw, with the epoch and the image's place in it.

    Raises:
        InputError: timm knows no such augmentation.
    """

    def __init__(self, config: TrialConfig, seed: int):
        self._seed = seed
        try:
            self._transform = create_transform(
                config.img_size,
                is_training=True,
                scale=tuple(config.crop_scale),
                ratio=tuple(config.crop_ratio),
                hflip=config.hflip,
                color_jitter=config.color_jitter,
                auto_augment=config.aa,
                interpolation=config.train_interpolation,
                use_prefetcher=True,  # bytes, neither normalised nor erased
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise InputError(
                f"aa={config.aa!r} or train_interpolation={config.train_interpolation!r} is unknown to timm: give e.g. "
                "aa='rand-m9-mstd0.5-inc1' and train_interpolation='bilinear'"
            ) from error
        _allow_zero_bits(self._transform)
        self._erasing = RandomErasing(config.reprob, mode="pixel", device="cpu") if config.reprob else None

    def __call__(self, images: list[Callable[[], Image.Image]], epoch: int, positions: np.ndarray) -> Loaded:
        """Images as bytes, each augmented by its own draws.

        Args:
            images: one function an image, which reads it.
            positions: each image's place in the epoch.

        Raises:
            InputError: an image's file is broken.
        """
        pixels, where, noise = [], [], []
        with own_random_numbers() as reseed:
            for image, position in zip(images, positions, strict=True):
                reseed(random_bits(self._seed, epoch, position, FOR_IMAGE))
                pixels.append(self._transform(image()).permute(1, 2, 0))  # as it lies in memory
                if self._erasing:
                    own, values = self._erased(pixels[-1].shape)
                    where.append(own + (len(pixels) - 1) * pixels[-1].numel())
                    noise.append(values)
        if not where:
            return torch.stack(pixels), torch.empty(0, dtype=torch.int32), torch.empty(0)
        return torch.stack(pixels), torch.cat(where).int(), torch.cat(noise)

    def _erased(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Which values of an image [H, W, 3] timm's random erasing would replace, and by what."""
        blank = torch.full(shape, torch.nan)
        self._erasing(blank.permute(2, 0, 1))
        where = blank.view(-1).isnan().logical_not().nonzero()[:, 0]
        return where, blank.view(-1)[where]


class BatchAugmentation:
    """What is done to whole batches, on the device where they are used: normalised, erased, mixed.

    The numbers are those of timm's transforms on single images, to the bit and on each device: every operation is one
    of IEEE 754's, and a division is by a tensor, since a GPU multiplies by a number's inverse.

    Args:
        config: the recipe's mixup and cutmix.
        mean, std: of the model's normalisation, three values between 0 and 1 each.
        seed: decides every draw, with the epoch and the batch's place in it.
        num_classes: width of mixed labels.
        device: where the batches are.
    """

    def __init__(
        self,
        config: TrialConfig,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int,
        num_classes: int,
        device: torch.device,
    ):
        self._scale = [torch.tensor(value, device=device) for value in (255.0, mean, std)]
        self._seed, self._channels_last = seed, bool(config.channels_last)
        self._mixup = None
        if config.mixup or config.cutmix:
            self._mixup = Mixup(
                config.mixup,
                config.cutmix,
                prob=config.mixup_prob,
                switch_prob=config.mixup_switch_prob,
                label_smoothing=config.smoothing,
                num_classes=num_classes,
            )

    def __call__(self, loaded: Loaded, target: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Batches from what `ImageAugmentation` gave, brought to the device.

        Args:
            target: int64 [b] class indices.

        Returns:
            Images, float32 [b, 3, H, W], in the recipe's `channels_last` or the usual order; and the classes, or mixed
            and smoothed labels, float32 [b, num_classes].
        """
        pixels, where, noise = loaded
        most, mean, std = self._scale
        images = pixels.float().div_(most).sub_(mean).div_(std)
        if len(where):
            images.view(-1).index_copy_(0, where.long(), noise)
        images = images.permute(0, 3, 1, 2)
        if not self._channels_last:
            images = images.contiguous()
        if self._mixup:
            with own_random_numbers() as reseed:
                reseed(random_bits(self._seed, epoch, step, FOR_MIXUP))
                images, target = self._mixup(images, target)
        return images, target


def random_bits(seed: int, epoch: int, position: int, purpose: int) -> int:
    """64 bits that differ for each place of the stream."""
    place = struct.pack("<Qqqb", seed % 2**64, epoch, position, purpose)
    return int.from_bytes(blake2b(place, digest_size=8).digest(), "little")


def _allow_zero_bits(transform) -> None:
    """Lets timm's posterize keep 0 bits, which strong settings ask for and Pillow 13 refuses: a black image."""
    for step in transform.transforms:
        for op in chain.from_iterable(getattr(step, "policy", [getattr(step, "ops", [])])):
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_) -> Image.Image:
    return posterize(image, bits) if bits else Image.new(image.mode, image.size)
