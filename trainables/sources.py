"""Where images come from: named data sets, folders and idx files, read into lists of images with classes."""

import contextlib
import difflib
import gzip
import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trainables.config import DataFields
from trainables.errors import InputError

VERIFY_LIMIT = 50_000  # images; larger folders meet a broken image when it is read
STAT_THREADS = 16  # on a network's file system each stat waits
TORCH = {  # timm's name: what torchvision keeps in data_dir
    "torch/cifar10": "cifar-10-batches-py",
    "torch/cifar100": "cifar-100-python",
    "torch/fashion_mnist": "FashionMNIST/raw",
    "torch/imagenet": "train and val",
    "torch/kmnist": "KMNIST/raw",
    "torch/mnist": "MNIST/raw",
}
EVAL_FOLDERS = ("val", "validation", "test")


class PixelsSource:
    """Images in memory: uint8 arrays [H, W] or [H, W, 3]."""

    in_memory = True

    def __init__(self, arrays):
        self.arrays = arrays

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.arrays[index]).convert("RGB")

    def stamp(self, indices: np.ndarray) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for index in indices:
            array = np.ascontiguousarray(self.arrays[index])
            digest.update(repr(array.shape).encode())
            digest.update(array)
        return digest.hexdigest()


class FilesSource:
    """Images in files, decoded when asked for or once into memory."""

    def __init__(self, paths: list[str], field: str):
        self.paths, self.field = paths, field
        self.sizes = self._verify() if len(paths) <= VERIFY_LIMIT else None  # decoded bytes
        self._decoded: dict[int, np.ndarray] = {}

    @property
    def in_memory(self) -> bool:
        return bool(self._decoded)

    def image(self, index: int) -> Image.Image:
        if index in self._decoded:
            return Image.fromarray(self._decoded[index])
        try:
            with Image.open(self.paths[index]) as image:
                return image.convert("RGB")
        except Exception as error:  # PIL's decoders raise whatever the bytes lead them to
            raise InputError(self._broken(index, error)) from error

    def stamp(self, indices: np.ndarray) -> str:
        def one(index: int) -> tuple[str, int, int]:
            path = self.paths[index]
            stat = os.stat(path)
            return os.path.basename(path), stat.st_size, stat.st_mtime_ns

        with ThreadPoolExecutor(STAT_THREADS) as pool:
            found = pool.map(one, indices.tolist(), chunksize=1000)
            digest = hashlib.blake2b(digest_size=16)
            for name, size, changed in found:
                digest.update(f"{name} {size} {changed}\n".encode())
        return digest.hexdigest()

    def decoded_bytes(self, indices: np.ndarray) -> float:
        return math.inf if self.sizes is None else int(self.sizes[indices].sum())

    def decode(self, indices: np.ndarray) -> None:
        self._decoded |= {int(index): np.asarray(self.image(index)) for index in indices}

    def _verify(self) -> np.ndarray:
        sizes, problems = np.zeros(len(self.paths), dtype=np.int64), []
        for index, path in enumerate(self.paths):
            try:
                with Image.open(path) as image:
                    sizes[index] = image.width * image.height * 3
                    image.verify()
            except Exception as error:
                problems.append(self._broken(index, error))
        if problems:
            raise InputError(problems[:10])
        return sizes

    def _broken(self, index: int, error: Exception) -> str:
        return f"{self.field}: {self.paths[index]} is no readable image ({_line(error)}); replace or remove it"


class HubSource:
    """Images of a Hugging Face data set, through timm's reader (its `ImageDataset` would replace broken ones)."""

    in_memory = False

    def __init__(self, reader, field: str):
        self.reader, self.field = reader, field

    def image(self, index: int) -> Image.Image:
        try:
            with Image.open(self.reader[int(index)][0]) as image:
                return image.convert("RGB")
        except Exception as error:
            raise InputError(f"{self.field}: image {index} cannot be read ({_line(error)}); mend the data") from error

    def stamp(self, indices: np.ndarray) -> str:
        table = self.reader.dataset._fingerprint  # `datasets` has no public name for it
        return hashlib.blake2b(table.encode() + indices.astype("<i8").tobytes(), digest_size=16).hexdigest()


@dataclass(frozen=True, eq=False)
class ImageList:
    """Some images of a source and their classes; pickles, so that loader processes can hold it.

    Attributes:
        targets: int64 [N], the class of each image.
    """

    source: PixelsSource | FilesSource | HubSource
    indices: np.ndarray
    targets: np.ndarray

    @classmethod
    def whole(cls, source, targets) -> "ImageList":
        targets = np.asarray(targets, dtype=np.int64)
        return cls(source, np.arange(len(targets)), targets)

    def __len__(self) -> int:
        return len(self.targets)

    def image(self, index: int) -> Image.Image:
        """The image as PIL RGB, decoded anew each time.

        Raises:
            InputError: the image's file is broken.
        """
        return self.source.image(self.indices[index])

    def stamp(self) -> str:
        """A hash that differs for other images or another order: of the pixels, or of files' names, sizes and times."""
        return self.source.stamp(self.indices)

    def subset(self, chosen: np.ndarray) -> "ImageList":
        """The images that a mask or positions choose."""
        return ImageList(self.source, self.indices[chosen], self.targets[chosen])


Reading = tuple[str, ImageList, ImageList | None, list[str]]


def known_names() -> list[str]:
    """Names that `data` takes beside `hfds/NAME` and folders."""
    return ["digits", *TORCH]


def read(fields: DataFields) -> Reading:
    """Reads the data set that `data` and `data_dir` name.

    Returns:
        Its name, its training split, its test split (None where it brings none) and its class names.

    Raises:
        InputError: the data are unknown, missing or broken.
    """
    name = fields.data.lower()
    folder = Path(fields.data).expanduser()
    if name == "digits":
        return "digits", *_digits()
    if name in TORCH:
        return name, *_torch(fields, name)
    if name.startswith("hfds/"):
        return fields.data, *_hub(fields)
    if folder.is_dir():
        reader = _idx if _idx_file(folder, "train-images-idx3-ubyte") else _folder
        return folder.resolve().name, *reader(fields, folder)
    close = difflib.get_close_matches(name, known_names(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(
        f"data={fields.data!r} is neither a known name nor a folder: {hint}give one of {', '.join(known_names())}, "
        "hfds/NAME or the path of a folder of class folders"
    )


def _digits():
    from sklearn.datasets import load_digits  # heavy, and needed here alone

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return ImageList.whole(PixelsSource(pixels), digits.target), None, [str(name) for name in digits.target_names]


def _torch(fields: DataFields, name: str):
    from timm.data import create_dataset

    root = Path(fields.data_dir or "").expanduser()
    wanted = f"data={fields.data!r} needs the folder that holds torchvision's {TORCH[name]}"
    if fields.data_dir is None or not root.is_dir():
        raise InputError(f"data_dir={fields.data_dir!r} is no folder: {wanted}")
    try:
        train, test = (create_dataset(name, str(root), split=split) for split in ("train", "validation"))
    except (RuntimeError, OSError) as error:
        raise InputError(f"data_dir={fields.data_dir!r} does not hold whole data: {wanted} ({_line(error)})") from error

    def images(dataset):
        if hasattr(dataset, "samples"):
            return ImageList.whole(
                FilesSource([path for path, _ in dataset.samples], f"data={fields.data!r}"), dataset.targets
            )
        return ImageList.whole(PixelsSource(np.asarray(dataset.data)), dataset.targets)

    names = [name if isinstance(name, str) else name[0] for name in train.classes]
    return images(train), images(test), names


def _hub(fields: DataFields):
    from timm.data import create_dataset

    where = f"data={fields.data!r} (data_dir={fields.data_dir!r})"

    def images(split):
        reader = create_dataset(fields.data, fields.data_dir, split=split).reader
        return ImageList.whole(HubSource(reader, where), list(reader.iter_targets())), reader.class_to_idx

    with contextlib.redirect_stdout(None), _offline():
        try:
            train, class_to_idx = images("train")
        except ImportError as error:
            raise InputError(f"data={fields.data!r} needs the package `datasets`: pip install datasets") from error
        except Exception as error:  # `datasets` has no common error for what is missing or ill-formed
            raise InputError(
                f"{where} cannot be read and is not downloaded here ({_line(error)}); put it into the "
                "cache data_dir, with a split `train` and columns `image` and `label`"
            ) from error
        test = None
        for split in EVAL_FOLDERS[1:]:
            with contextlib.suppress(ValueError):  # the data set has no such split
                found = images(split)[0]
                test = found if found.targets.min() >= 0 else None  # -1: the labels are withheld
                break
    classes = sorted(class_to_idx, key=class_to_idx.get) or [str(i) for i in range(int(train.targets.max()) + 1)]
    return train, test, classes


@contextlib.contextmanager
def _offline():
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _folder(fields: DataFields, root: Path):
    from timm.utils.misc import natural_key
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    def class_folders(folder):
        names = (path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        return sorted(names, key=natural_key)

    def images(folder, classes):
        class_to_idx = {name: index for index, name in enumerate(classes)}
        samples = classes and make_dataset(str(folder), class_to_idx, IMG_EXTENSIONS, allow_empty=True)
        if not samples:
            raise InputError(f"data={fields.data!r}: no images in {folder}; put them in class folders, CLASS/NAME.png")
        return ImageList.whole(
            FilesSource([path for path, _ in samples], f"data={fields.data!r}"), [y for _, y in samples]
        )

    if not (root / "train").is_dir():
        classes = class_folders(root)
        return images(root, classes), None, classes
    classes = class_folders(root / "train")
    train = images(root / "train", classes)
    held_out = next((root / name for name in EVAL_FOLDERS if (root / name).is_dir()), None)
    if held_out is None:
        return train, None, classes
    unknown = set(class_folders(held_out)) - set(classes)
    if unknown:
        raise InputError(
            f"data={fields.data!r}: class {min(unknown)!r} of {held_out} is not in train; add or remove it"
        )
    return train, images(held_out, classes), classes


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _idx(fields: DataFields, folder: Path):
    def array(name):
        path = _idx_file(folder, name)
        if path is None:
            raise InputError(f"data={fields.data!r}: {folder / name}[.gz] is missing; put it there")
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                content = file.read()
            shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
            return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
        except (OSError, EOFError, IndexError, ValueError) as error:
            raise InputError(
                f"data={fields.data!r}: {path} is no whole idx file ({_line(error)}); copy it again"
            ) from error

    def images(prefix):
        pixels, targets = array(f"{prefix}-images-idx3-ubyte"), array(f"{prefix}-labels-idx1-ubyte")
        if len(pixels) != len(targets):
            raise InputError(f"data={fields.data!r}: {prefix} has {len(pixels)} images and {len(targets)} labels")
        return ImageList.whole(PixelsSource(pixels), targets)

    train = images("train")
    test = images("t10k") if _idx_file(folder, "t10k-images-idx3-ubyte") else None
    return train, test, [str(i) for i in range(int(train.targets.max()) + 1)]


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
