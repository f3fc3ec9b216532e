import random

import numpy as np
import pytest
import torch
from PIL import Image

from trainables.config import DataFields, TrialConfig
from trainables.data import load_splits
from trainables.errors import InputError
from trainables.stream import eval_loader, train_loader

MEAN = STD = (0.5, 0.5, 0.5)
STRONG = {"aa": "rand-m9-mstd0.5-inc1", "reprob": 0.5}


@pytest.fixture(scope="module")
def splits():
    return load_splits(DataFields(data="digits", img_size=16, max_images=40))


def stream_of(split, rank=0, world_size=1, seed=0, **recipe):
    recipe = {"batch_size": 16, "img_size": 16, "color_jitter": 0.4, **recipe}
    config = TrialConfig(teacher="t", student="s", epochs=1, **recipe)
    return train_loader(split, config, mean=MEAN, std=STD, rank=rank, world_size=world_size, seed=seed, num_classes=10)


def batches_of(split, epoch=0, **options):
    stream = stream_of(split, **options)
    try:
        return [batch[:2] for batch in stream.epoch(epoch)]
    finally:
        stream.close()


def assert_equal(one, other):
    assert len(one) == len(other) > 0
    for batch, other_batch in zip(one, other, strict=True):
        assert all(torch.equal(part, other_part) for part, other_part in zip(batch, other_batch, strict=False))


def test_a_batch_holds_normalised_images_and_class_indices(splits):
    images, target = batches_of(splits.train)[0]
    assert images.shape == (16, 3, 16, 16) and images.dtype == torch.float32
    assert -1 <= images.min() < -0.5 and 0.5 < images.max() <= 1
    assert target.shape == (16,) and target.dtype == torch.int64


def test_a_batch_tells_the_places_of_its_images(splits):
    for _, target, index in stream_of(splits.train).epoch(0):
        assert index.dtype == torch.int64 and len(set(index.tolist())) == 16
        assert torch.equal(torch.from_numpy(splits.train.targets)[index], target)


def test_an_epoch_drops_the_images_that_fill_no_batch(splits):
    stream = stream_of(splits.train)
    assert len(stream) == len(list(stream.epoch(0))) == 2


def test_without_augmentation_an_epoch_shows_every_image_with_its_target(splits):
    plain = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "hflip": 0.0, "color_jitter": None, "batch_size": 40}
    ((images, target),) = batches_of(splits.train, **plain)
    expected, expected_target = next(iter(eval_loader(splits.train, 16, mean=MEAN, std=STD, batch_size=40)))
    assert not torch.equal(target, expected_target)  # shuffled
    shown = sorted((int(y), x.numpy().tobytes()) for x, y in zip(images, target, strict=True))
    assert shown == sorted((int(y), x.numpy().tobytes()) for x, y in zip(expected, expected_target, strict=True))


@pytest.mark.parametrize("size", [16, 32])
def test_both_loaders_enlarge_the_digits(splits, size):
    assert batches_of(splits.train, img_size=size)[0][0].shape[-2:] == (size, size)
    images, _ = next(iter(eval_loader(splits.holdout, size, mean=MEAN, std=STD, batch_size=8)))
    assert images.shape == (8, 3, size, size)


def test_an_epoch_is_the_same_whenever_it_is_read(splits):
    stream = stream_of(splits.train, **STRONG)
    first = list(stream.epoch(3))
    list(stream.epoch(4))
    assert_equal(first, list(stream.epoch(3)))
    assert_equal(first, batches_of(splits.train, epoch=3, **STRONG))


def test_an_epoch_left_early_can_be_read_again(splits):
    for workers in (0, 1):
        stream = stream_of(splits.train, loader_workers=workers)
        left = next(stream.epoch(0))
        again = list(stream.epoch(0))
        stream.close()
        assert_equal([left], again[:1])
        assert len(again) == 2


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_epochs_and_seeds_differ_in_order_and_augmentation(splits, change):
    (images, target), (other, other_target) = batches_of(splits.train)[0], batches_of(splits.train, **change)[0]
    assert not torch.equal(target, other_target) and not torch.equal(images, other)


def test_an_image_looks_different_in_each_epoch(splits):
    one_image = splits.train.subset(np.zeros(16, dtype=int))
    stream = stream_of(one_image)
    looks = {image.numpy().tobytes() for epoch in range(2) for image in next(stream.epoch(epoch))[0]}
    assert len(looks) == 32


@pytest.mark.parametrize(
    "mixing",
    [{}, {"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "mixup_prob": 0.7, "smoothing": 0.1}],
)
@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_take_the_same_batches_apart(splits, mixing, world_size):
    whole = [batch for epoch in range(3) for batch in batches_of(splits.train, epoch, **mixing, **STRONG)]
    streams = [stream_of(splits.train, rank, world_size, **mixing, **STRONG) for rank in range(world_size)]
    order = np.argsort(np.concatenate([stream.slots for stream in streams]))
    parts = [[batch for epoch in range(3) for batch in stream.epoch(epoch)] for stream in streams]
    together = [
        tuple(torch.cat(pieces)[order] for pieces in zip(*batch, strict=True)) for batch in zip(*parts, strict=True)
    ]
    assert_equal(whole, together)


def test_loader_processes_change_nothing(splits):
    recipe = {**STRONG, "mixup": 0.8, "cutmix": 1.0}
    stream = stream_of(splits.train, loader_workers=2, **recipe)
    for epoch in (0, 1):
        assert_equal(batches_of(splits.train, epoch, **recipe), list(stream.epoch(epoch)))
    stream.close()


def test_loader_processes_go_on_with_the_next_epoch(splits):
    config = TrialConfig(teacher="t", student="s", epochs=3, batch_size=16, img_size=16, loader_workers=1)
    options = dict(mean=MEAN, std=STD, rank=0, world_size=1, seed=0, num_classes=10)
    stream = train_loader(splits.train, config, **options)
    begun, read = [], []
    for epoch in (0, 1, 2, 1):
        read.append([batch[:2] for batch in stream.epoch(epoch)])
        begun.append(stream._keys.epochs.start)
    stream.close()
    for epoch, batches in zip((0, 1, 2, 1), read, strict=True):
        assert_equal(batches_of(splits.train, epoch, color_jitter=None), batches)
    assert begun == [0, 0, 0, 1], "only the epoch out of turn begins anew"


def test_loader_processes_live_as_long_as_the_stream(splits):
    stream = stream_of(splits.train, loader_workers=1)
    list(stream.epoch(0))
    (process,) = stream._loader._iterator._workers
    list(stream.epoch(1))
    assert process.is_alive()
    stream.close()
    assert not process.is_alive()


def test_mixed_labels_are_distributions_smoothed_as_asked(splits):
    mixed = [target for epoch in range(3) for _, target in batches_of(splits.train, epoch, mixup=0.8, smoothing=0.1)]
    target = torch.cat(mixed)
    assert target.shape == (96, 10) and target.dtype == torch.float32
    assert torch.allclose(target.sum(1), torch.ones(96)) and target.min() == pytest.approx(0.01)


def test_smoothing_alone_leaves_class_indices(splits):
    assert batches_of(splits.train, smoothing=0.1)[0][1].dtype == torch.int64


@pytest.mark.parametrize("workers", [0, 1])
def test_the_process_keeps_its_random_numbers(splits, workers):
    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seeded():
        random.seed(5), np.random.seed(5), torch.manual_seed(5)

    seeded()
    expected = drawn()
    seeded()
    batches_of(splits.train, mixup=0.8, loader_workers=workers, **STRONG)
    list(eval_loader(splits.holdout, 16, mean=MEAN, std=STD, batch_size=8, loader_workers=workers))
    assert drawn() == expected


def test_the_process_s_random_numbers_change_nothing(splits):
    expected = batches_of(splits.train, mixup=0.8, **STRONG)
    random.seed(1), np.random.seed(2), torch.manual_seed(3), torch.randn(3), random.gauss(0, 1), np.random.randn()
    assert_equal(expected, batches_of(splits.train, mixup=0.8, **STRONG))


@pytest.mark.parametrize("aa", ["rand-m10-n4-inc1", "rand-m0-n4", "original", "augmix-m10-w1"])
def test_the_strongest_augmentation_runs(splits, aa):
    for epoch in range(4):
        for images, _ in batches_of(splits.train, epoch, aa=aa):
            assert images.isfinite().all()


def test_a_small_split_is_served_in_the_largest_batch_that_fits(splits):
    stream = stream_of(splits.train.subset(np.arange(15)), world_size=2, batch_size=128)
    assert (stream.batch_size, len(stream), len(stream.slots)) == (12, 1, 6)
    assert len(next(stream.epoch(0))[0]) == 6


def test_a_split_too_small_for_the_workers_is_refused(splits):
    with pytest.raises(InputError, match=r"3 training image\(s\) and workers_per_trial=2 needs 4"):
        stream_of(splits.train.subset(np.arange(3)), world_size=2)


@pytest.mark.parametrize(("batch_size", "world_size"), [(15, 1), (16, 3), (18, 2)])
def test_a_batch_that_does_not_divide_is_refused(splits, batch_size, world_size):
    with pytest.raises(InputError) as caught:
        stream_of(splits.train, world_size=world_size, batch_size=batch_size)
    line = caught.value.problems[0]
    assert f"batch_size={batch_size}" in line and f"workers_per_trial={world_size}" in line
    assert f"multiple of {2 * world_size}" in line


@pytest.mark.parametrize("recipe", [{"aa": "nonsense"}, {"aa": "rand-z9"}, {"train_interpolation": "nearby"}])
def test_an_unknown_augmentation_is_refused(splits, recipe):
    with pytest.raises(InputError, match="is unknown to timm"):
        stream_of(splits.train, **recipe)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_ends_the_epoch_with_its_name(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("trainables.data.MEMORY_LIMIT", 0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{number}.png")
    split = load_splits(DataFields(data=str(tmp_path), img_size=8, holdout=0.2)).train
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    stream = stream_of(split, batch_size=2, loader_workers=workers)
    with pytest.raises(InputError) as caught:
        list(stream.epoch(0))
    stream.close()
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value) and ".png" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shards_drop_no_image(splits, workers):
    options = {"mean": MEAN, "std": STD, "batch_size": 6, "loader_workers": workers}
    whole = torch.cat([images for images, _ in eval_loader(splits.holdout, 16, **options)])
    assert len(whole) == 40
    for rank in range(3):
        shard = eval_loader(splits.holdout, 16, rank=rank, world_size=3, **options)
        batches = list(shard)
        assert len(batches) == len(shard) and len(batches[-1][0]) == len(whole[rank::3]) - 6 * (len(shard) - 1)
        assert torch.equal(torch.cat([images for images, _ in batches]), whole[rank::3])
        targets = torch.cat([target for _, target in batches])
        assert np.array_equal(targets.numpy(), splits.holdout.targets[rank::3])
        assert_equal(batches, list(shard))


def test_evaluation_keeps_its_loader_processes_and_replaces_one_that_died(splits):
    loader = eval_loader(splits.holdout, 16, mean=MEAN, std=STD, batch_size=6, loader_workers=1)
    expected = list(eval_loader(splits.holdout, 16, mean=MEAN, std=STD, batch_size=6))
    assert_equal(expected, list(loader))
    (process,) = loader._loader._iterator._workers
    assert_equal(expected, list(loader))
    assert process.is_alive()
    process.kill()
    process.join()
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(loader)
    assert_equal(expected, list(loader))
    (another,) = loader._loader._iterator._workers
    next(iter(loader))
    assert not another.is_alive(), "a reading that is left early is no part of the next one"
    assert_equal(expected, list(loader))


@pytest.mark.parametrize(("side", "corner_is_shown"), [(28, True), (64, True), (256, False)])
def test_evaluation_shows_small_images_whole_and_the_centre_of_large_ones(splits, side, corner_is_shown):
    class Corner:
        targets = np.zeros(1, dtype=np.int64)

        def __len__(self):
            return 1

        def image(self, index):
            pixels = np.zeros((side, side, 3), np.uint8)
            pixels[: side // 32 + 1, : side // 32 + 1] = 255
            return Image.fromarray(pixels)

    images, _ = next(iter(eval_loader(Corner(), 32, mean=MEAN, std=STD, batch_size=1)))
    assert (images[0, :, 0, 0] > 0).all().item() == corner_is_shown
