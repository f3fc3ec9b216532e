"""Augmentation in two parts, by image and by batch, against timm's own in one."""

import numpy as np
import pytest
import torch
from timm.data import Mixup, create_transform

from trainables.augmentation import (
    FOR_IMAGE,
    FOR_MIXUP,
    BatchAugmentation,
    ImageAugmentation,
    random_bits,
)
from trainables.config import DataFields, TrialConfig
from trainables.data import load_splits
from trainables.randomness import own_random_numbers

MEAN, STD, SIDE, SEED, EPOCH, STEP = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 24, 7, 3, 2
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def split():
    return load_splits(DataFields(data="digits", img_size=SIDE, max_images=32)).train


def timms(split, config):
    """A batch by timm's transforms on single images, erasing and normalising included, and its mixup."""
    transform = create_transform(
        SIDE,
        is_training=True,
        scale=tuple(config.crop_scale),
        hflip=config.hflip,
        color_jitter=config.color_jitter,
        auto_augment=config.aa,
        re_prob=config.reprob,
        re_mode="pixel",
        mean=MEAN,
        std=STD,
    )
    images = []
    with own_random_numbers() as reseed:
        for place in range(16):
            reseed(random_bits(SEED, EPOCH, place, FOR_IMAGE))
            images.append(transform(split.image(place)))
        images, target = torch.stack(images), torch.from_numpy(split.targets[:16])
        if config.mixup:
            mixup = Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=10)
            reseed(random_bits(SEED, EPOCH, STEP, FOR_MIXUP))
            images, target = mixup(images, target)
    return images, target


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"reprob": 0.6, "color_jitter": 0.4},
        {"aa": "rand-m9-mstd0.5-inc1", "reprob": 0.3, "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1},
        {"reprob": 0.5, "mixup": 0.8, "channels_last": True},
    ],
    ids=["plain", "erased", "mixed", "channels-last"],
)
def test_the_numbers_are_timms_to_the_bit(split, recipe, device):
    config = TrialConfig(teacher="t", student="s", epochs=1, img_size=SIDE, **recipe)
    readers = [lambda place=place: split.image(place) for place in range(16)]
    loaded = ImageAugmentation(config, SEED)(readers, EPOCH, np.arange(16))
    assert loaded[0].dtype == torch.uint8 and bool(len(loaded[1])) == bool(config.reprob)
    finish = BatchAugmentation(config, MEAN, STD, SEED, 10, torch.device(device))
    target = torch.from_numpy(split.targets[:16]).to(device)
    images, target = finish(tuple(part.to(device) for part in loaded), target, EPOCH, STEP)
    expected, expected_target = timms(split, config)
    assert torch.equal(images.cpu(), expected) and torch.equal(target.cpu(), expected_target)
    order = torch.channels_last if config.channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=order)
