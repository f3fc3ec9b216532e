import pickle

import numpy as np
import pytest
from PIL import Image

from trainables.config import DataFields
from trainables.data import known_names, load_splits, synthetic_splits
from trainables.errors import InputError


def splits_of(**fields):
    return load_splits(DataFields(**{"data": "digits", "img_size": 16, **fields}))


def members(split):
    return set(split.indices.tolist())


def write_folder(root, images_per_class, classes=("cat", "dog"), seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(images_per_class):
            Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return str(root)


def error_line(**fields):
    with pytest.raises(InputError) as caught:
        splits_of(**fields)
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]
    return caught.value.problems[0]


def test_splits_cover_the_data_without_overlap():
    splits = splits_of(holdout=0.2)
    parts = [members(split) for split in (splits.teacher_train, splits.holdout, splits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    assert members(splits.train) == members(splits.teacher_train)


def test_holdout_and_test_hold_their_share_of_every_class():
    splits = splits_of(holdout=0.25)
    training = np.bincount(splits.teacher_train.targets) + np.bincount(splits.holdout.targets)
    assert np.abs(np.bincount(splits.holdout.targets) - 0.25 * training).max() <= 0.5
    assert np.abs(np.bincount(splits.test.targets) - 0.2 * (training + np.bincount(splits.test.targets))).max() <= 0.5


def test_images_are_rgb_and_targets_int64():
    split = splits_of().train
    assert split.image(0).mode == "RGB" and split.image(0).size == (8, 8)
    assert split.image(0).getextrema()[0][1] > 200  # 0 to 16 became 0 to 255
    assert split.targets.dtype == np.int64


def test_an_image_belongs_to_its_target():
    from sklearn.datasets import load_digits

    split, digits = splits_of().holdout, load_digits()
    for index in range(5):
        source = split.indices[index]
        assert split.targets[index] == digits.target[source]
        assert np.array_equal(np.asarray(split.image(index))[..., 0], np.rint(digits.images[source] * 255 / 16))


def test_splits_survive_pickling():
    split = splits_of().train
    again = pickle.loads(pickle.dumps(split))
    assert len(again) == len(split) and again.image(3).tobytes() == split.image(3).tobytes()


def test_the_same_fields_give_the_same_splits_and_another_seed_gives_others():
    one, same, other = splits_of(), splits_of(), splits_of(data_seed=-7)
    assert members(one.holdout) == members(same.holdout) and one.fingerprint == same.fingerprint
    assert members(one.holdout) != members(other.holdout)
    assert members(one.test) == members(other.test)


def test_the_label_budget_counts_per_class_and_leaves_the_teacher_alone():
    splits = splits_of(labels_per_class=7)
    assert np.bincount(splits.train.targets).tolist() == [7] * 10
    assert members(splits.train) < members(splits.teacher_train)
    assert members(splits.teacher_train) == members(splits_of().teacher_train)


def test_a_larger_label_budget_contains_the_smaller():
    assert members(splits_of(labels_per_class=3).train) < members(splits_of(labels_per_class=9).train)


def test_a_label_budget_beyond_the_data_takes_all():
    splits = splits_of(labels_per_class=10_000)
    assert members(splits.train) == members(splits.teacher_train)


def test_max_images_caps_every_split_evenly():
    splits = splits_of(max_images=25)
    for split in (splits.train, splits.teacher_train, splits.holdout, splits.test):
        assert len(split) == 25 and np.bincount(split.targets, minlength=10).min() >= 2
    assert not members(splits.train) & members(splits.holdout)


def test_max_images_below_the_number_of_classes_takes_distinct_classes():
    assert len(set(splits_of(max_images=4).holdout.targets)) == 4


def test_the_fingerprint_follows_what_decides_the_splits():
    variants = [{}, {"data_seed": 1}, {"holdout": 0.2}, {"labels_per_class": 5}, {"max_images": 50}]
    assert len({splits_of(**fields).fingerprint for fields in variants}) == len(variants)
    assert splits_of(img_size=32).fingerprint == splits_of(img_size=16).fingerprint


def test_the_fingerprint_follows_pixels_and_class_names_but_not_the_place(tmp_path):
    folders = [
        write_folder(tmp_path / "a" / "pets", 4),
        write_folder(tmp_path / "b" / "pets", 4),
        write_folder(tmp_path / "c" / "pets", 4, seed=1),
        write_folder(tmp_path / "d" / "pets", 4, classes=("cat", "eel")),
    ]
    one, moved, pixels, names = (splits_of(data=folder, holdout=0.3).fingerprint for folder in folders)
    assert one == moved and len({one, pixels, names}) == 3


def test_the_description_names_the_data_and_the_sizes():
    assert splits_of(labels_per_class=2).description.startswith("digits: 10 classes; images: train 20,")


def test_known_names_are_what_data_takes():
    assert {"digits", "torch/cifar100", "torch/fashion_mnist"} <= set(known_names())


def test_synthetic_splits_stand_in_at_the_wanted_size():
    splits = synthetic_splits(DataFields(data="torch/cifar100", img_size=24, holdout=0.001), 100)
    assert len(splits.classes) == 100 and len(splits.test) == 500
    assert np.bincount(splits.holdout.targets).tolist() == [1] * 100
    assert splits.train.image(0).size == (24, 24) and splits.train.image(0).tobytes() != splits.train.image(1).tobytes()
    assert "random pixels" in splits.description


def test_synthetic_splits_respect_max_images():
    assert len(synthetic_splits(DataFields(img_size=8, max_images=12), 10).train) == 12


def test_a_tiny_set_has_no_test_split_rather_than_no_training(tmp_path):
    splits = splits_of(data=write_folder(tmp_path / "pets", 2), holdout=0.5)
    assert (len(splits.train), len(splits.holdout), splits.test) == (2, 2, None)


def test_a_class_with_a_single_image_is_named(tmp_path):
    write_folder(tmp_path, 4)
    write_folder(tmp_path, 1, classes=("eel",))
    line = error_line(data=str(tmp_path))
    assert line.startswith("data=") and "'eel' has 1 training image" in line and "add images" in line


def test_a_class_without_images_is_named(tmp_path):
    write_folder(tmp_path, 4)
    (tmp_path / "eel").mkdir()
    assert "'eel' has 0 training image" in error_line(data=str(tmp_path))


def test_a_holdout_that_spares_a_class_names_the_class_and_the_least_share(tmp_path):
    folder = write_folder(tmp_path, 10)  # 8 of each class after the test split
    line = error_line(data=folder, holdout=0.05)
    assert line.startswith("holdout=0.05") and "'cat'" in line and "0.07 or more" in line
    assert len(splits_of(data=folder, holdout=0.07).holdout) == 2


def test_an_unknown_name_gets_a_suggestion():
    line = error_line(data="cifar100")
    assert line.startswith("data='cifar100'") and "did you mean 'torch/cifar100'" in line


def test_a_missing_folder_is_named(tmp_path):
    missing = str(tmp_path / "nowhere")
    line = error_line(data=missing)
    assert missing in line and "path of a folder" in line
