"""A trial's images as a folder of class folders, for trainers that cannot read the data themselves."""

import re
from pathlib import Path

from trainables.config import TrialConfig, data_fields
from trainables.data import ImageList, load_splits

PARTS = {"train": "train", "holdout": "validation", "test": "test"}  # of ours, and the folder that has it


def write_images(config: TrialConfig, out: Path) -> dict[str, int]:
    """Writes the trial's splits as PNG, which keeps every pixel: `train`, `validation` (the holdout) and `test`.

    Class folders begin with the class's number, so that their order is that of the logits.

    Args:
        config: its data's fields.
        out: the folder, which is made.

    Returns:
        How many images each part has.

    Raises:
        InputError: the data are no longer there.
    """
    splits = load_splits(data_fields(config))
    counts = {}
    for part, name in PARTS.items():
        if (split := getattr(splits, part)) is not None:
            _write(split, splits.classes, out / name)
            counts[name] = len(split)
    return counts


def _write(split: ImageList, classes: list[str], out: Path) -> None:
    digits = len(str(len(classes) - 1))
    folders = [
        out / f"{number:0{digits}}_{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}" for number, name in enumerate(classes)
    ]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for index, target in enumerate(split.targets):
        split.image(index).save(folders[target] / f"{index:07}.png")
