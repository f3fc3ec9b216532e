"""What the tests of the teacher store share: a teacher that stands, and what a lane keeps between its trials."""

import pytest
import torch

from tests.conftest import TINY
from trainables.assets import Assets
from trainables.config import TrialConfig
from trainables.context import RunContext
from trainables.teacher import WEIGHTS
from trainables.teacher_job import prepare_teacher


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """A teacher fitted in a moment, shared by the module's tests."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("teacher")
    context = RunContext(folder / "work", lambda _: True)
    prepare_teacher(
        TrialConfig(**TINY), {"epochs": 2, "batch_size": 64, "hflip": 0.0}, Assets(), context, folder / "kept"
    )
    return folder / "kept"


@pytest.fixture
def lane(teacher_folder, tmp_path):
    """Makes what a lane keeps between its trials; all lanes of a test share a store."""
    warnings = []

    def made(store=tmp_path / "store"):
        assets = Assets(
            teacher_weights=teacher_folder / WEIGHTS, teacher_store=store and str(store), warn=warnings.append
        )
        assets.warnings = warnings
        return assets

    return made
