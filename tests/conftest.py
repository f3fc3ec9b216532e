"""What the tests share: a tiny pair that trains in seconds, and one thread, so that numbers repeat to the bit."""

import pytest
import torch

from trainables.config import TrialConfig

TINY = {
    "data": "digits",
    "img_size": 16,
    "holdout": 0.2,
    "labels_per_class": 8,
    "teacher": "vit_tiny_patch16_224",
    "teacher_source": "fit",
    "teacher_fit_from": "scratch",
    "teacher_kwargs": {"patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2},
    "student": "vit_small_patch16_224",
    "student_kwargs": {"patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2},
    "stages": [1, 4],
    "eps": [1.2, 1.1, 1.3],
    "epochs": 4,
    "batch_size": 16,
    "hflip": 0.0,
    "lr": 2e-3,
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def tiny():
    """Makes a small trial's configuration, with changes."""
    return lambda **changes: TrialConfig(**(TINY | changes))


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """A teacher of `TINY`, fitted in a moment and kept as a study keeps it; shared by a module's tests."""
    from trainables.assets import Assets
    from trainables.context import RunContext
    from trainables.teacher_job import prepare_teacher

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("teacher")
    context, recipe = RunContext(folder / "work", lambda _: True), {"epochs": 2, "batch_size": 64, "hflip": 0.0}
    prepare_teacher(TrialConfig(**TINY), recipe, Assets(), context, folder / "kept")
    return folder / "kept"
