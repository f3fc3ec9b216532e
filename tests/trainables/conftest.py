"""What the tests of the teacher store share: what a lane keeps between its trials."""

import pytest

from trainables.assets import Assets
from trainables.teacher import WEIGHTS


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
