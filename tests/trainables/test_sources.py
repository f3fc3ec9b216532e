import gzip
import sys

import numpy as np
import pytest
from PIL import Image

from trainables import sources
from trainables.config import DataFields
from trainables.data import load_splits
from trainables.errors import InputError


def splits_of(**fields):
    return load_splits(DataFields(img_size=16, **{"holdout": 0.25, **fields}))


def error_line(**fields):
    with pytest.raises(InputError) as caught:
        splits_of(**fields)
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]
    return caught.value.problems[0]


def write_folder(root, images_per_class, classes=("cat", "dog"), mode="RGB"):
    for shade, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(images_per_class):
            Image.new(mode, (5, 6), 10 * shade).save(root / name / f"{number}.png")
    return str(root)


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes() + array.tobytes()


def write_idx(root, suffix="", prefixes=("train", "t10k"), images=20):
    root.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if suffix else open
    rng = np.random.default_rng(0)
    for prefix in prefixes:
        pixels, labels = rng.integers(0, 256, (images, 28, 28), np.uint8), np.arange(images, dtype=np.uint8) % 2
        for name, array in ((f"{prefix}-images-idx3-ubyte", pixels), (f"{prefix}-labels-idx1-ubyte", labels)):
            with opener(root / (name + suffix), "wb") as file:
                file.write(idx_bytes(array))
    return pixels


@pytest.mark.parametrize("evaluation", ["val", "validation", "test"])
def test_a_folder_with_train_and_evaluation_folders_keeps_its_own_test_split(tmp_path, evaluation):
    write_folder(tmp_path / "train", 8)
    write_folder(tmp_path / evaluation, 3)
    splits = splits_of(data=str(tmp_path))
    assert splits.classes == ["cat", "dog"]
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (12, 4, 6)


@pytest.mark.parametrize("sub", ["", "train"])
def test_a_folder_without_an_evaluation_folder_gives_a_fifth_to_the_test_split(tmp_path, sub):
    write_folder(tmp_path / sub, 10)
    splits = splits_of(data=str(tmp_path))
    assert len(splits.test) == 4 and len(splits.train) + len(splits.holdout) == 16


def test_class_folders_are_in_natural_order_and_images_may_lie_deeper(tmp_path):
    write_folder(tmp_path, 4, classes=("class10", "class2"))
    write_folder(tmp_path / "class3", 4, classes=("images",))
    (tmp_path / ".cache").mkdir()
    assert splits_of(data=str(tmp_path)).classes == ["class2", "class3", "class10"]


def test_grey_images_become_rgb(tmp_path):
    image = splits_of(data=write_folder(tmp_path, 4, mode="L")).train.image(0)
    assert image.mode == "RGB" and image.size == (5, 6)


def test_small_folders_live_in_memory_and_large_ones_do_not(tmp_path, monkeypatch):
    folder = write_folder(tmp_path, 4)
    in_memory = splits_of(data=folder)
    monkeypatch.setattr("trainables.data.MEMORY_LIMIT", 0)
    on_disk = splits_of(data=folder)
    assert in_memory.fingerprint == on_disk.fingerprint
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert in_memory.train.image(0).size == (5, 6)
    with pytest.raises(InputError, match="is no readable image"):
        on_disk.train.image(0)


def test_a_broken_image_is_named_at_load(tmp_path):
    write_folder(tmp_path, 4)
    (tmp_path / "cat" / "2.png").write_bytes(b"no image")
    line = error_line(data=str(tmp_path))
    assert line.startswith("data=") and "cat/2.png" in line and "replace or remove" in line


def test_every_broken_image_is_named_at_once(tmp_path):
    write_folder(tmp_path, 4)
    for name in ("cat", "dog"):
        (tmp_path / name / "2.png").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        splits_of(data=str(tmp_path))
    assert len(caught.value.problems) == 2


def test_a_truncated_image_of_a_small_folder_is_named_at_load(tmp_path):
    write_folder(tmp_path, 4)
    path = tmp_path / "cat" / "9.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-400])  # the header is whole, so that verify() sees nothing
    assert "cat/9.jpg" in error_line(data=str(tmp_path), holdout=0.3)


def test_a_broken_image_of_a_large_folder_is_named_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "VERIFY_LIMIT", 3)
    monkeypatch.setattr("trainables.data.FINGERPRINT_IMAGES", 0)
    write_folder(tmp_path, 4)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no image")
    split = splits_of(data=str(tmp_path)).train
    with pytest.raises(InputError, match=r"data=.*\.png is no readable image"):
        split.image(0)


def test_a_folder_without_images_says_what_is_expected(tmp_path):
    assert "CLASS/NAME.png" in error_line(data=str(tmp_path))
    (tmp_path / "cat").mkdir()
    assert "no images in" in error_line(data=str(tmp_path))


def test_a_test_class_that_training_lacks_is_named(tmp_path):
    write_folder(tmp_path / "train", 4)
    write_folder(tmp_path / "val", 2, classes=("cat", "eel"))
    assert "class 'eel'" in error_line(data=str(tmp_path))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_idx_files_is_read(tmp_path, suffix):
    pixels = write_idx(tmp_path, suffix)
    splits = splits_of(data=str(tmp_path))
    assert (len(splits.teacher_train), len(splits.holdout), len(splits.test)) == (14, 6, 20)
    assert splits.classes == ["0", "1"]
    assert np.array_equal(np.asarray(splits.test.image(3))[..., 1], pixels[3]) and splits.test.targets[3] == 1


def test_idx_files_without_a_test_part_give_a_fifth_to_the_test_split(tmp_path):
    write_idx(tmp_path, prefixes=("train",))
    assert len(splits_of(data=str(tmp_path)).test) == 4


def test_a_missing_idx_file_is_named(tmp_path):
    write_idx(tmp_path, ".gz")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert "train-labels-idx1-ubyte[.gz] is missing" in error_line(data=str(tmp_path))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_truncated_idx_file_is_named(tmp_path, suffix):
    write_idx(tmp_path, suffix)
    path = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    path.write_bytes(path.read_bytes()[:-30])
    line = error_line(data=str(tmp_path))
    assert path.name in line and "copy it again" in line


def test_an_idx_file_with_too_few_labels_is_named(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    assert "20 images and 3 labels" in error_line(data=str(tmp_path))


def test_fashion_mnist_is_read_where_torchvision_keeps_it(tmp_path):
    write_idx(tmp_path / "FashionMNIST" / "raw")
    raw = tmp_path / "FashionMNIST" / "raw"
    for prefix in ("train", "t10k"):  # all ten classes, so that torchvision's names fit
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((40, 28, 28), np.uint8)))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(40, dtype=np.uint8) % 10))
    splits = splits_of(data="torch/fashion_mnist", data_dir=str(tmp_path))
    assert splits.classes[0] == "T-shirt/top" and len(splits.test) == 40 and len(splits.holdout) == 10
    assert splits.train.image(0).size == (28, 28)


def test_cifar100_is_read_where_torchvision_keeps_it(tmp_path, monkeypatch):
    import pickle

    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # the test's files are small
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    labels = list(range(100)) * 4
    for name in ("train", "test"):
        content = {"data": np.zeros((400, 3072), np.uint8), "fine_labels": labels}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"name{i}" for i in range(100)]}))
    splits = splits_of(data="torch/cifar100", data_dir=str(tmp_path))
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (300, 100, 400)
    assert splits.classes[99] == "name99" and splits.train.image(0).size == (32, 32)


@pytest.mark.parametrize("data_dir", [None, "nowhere"])
def test_a_named_set_needs_its_folder(data_dir):
    line = error_line(data="torch/cifar100", data_dir=data_dir)
    assert line.startswith(f"data_dir={data_dir!r}") and "cifar-100-python" in line


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "imagenet", "kmnist", "mnist"])
def test_a_folder_without_the_named_set_is_refused(tmp_path, name):
    line = error_line(data=f"torch/{name}", data_dir=str(tmp_path))
    assert line.startswith("data_dir=") and f"torch/{name}" in line


def test_hugging_face_data_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
    assert "pip install datasets" in error_line(data="hfds/cifar100")
