"""What the exporters' tests share: a trial that was trained in a plain loop, and what it reported."""

import json
from types import SimpleNamespace

import pytest

from search.export_command import load_exporters
from search.exporters.base import Source
from tests.conftest import TINY
from trainables.assets import Assets
from trainables.config import TrialConfig
from trainables.context import RunContext
from trainables.loop import STUDENT, run_trial
from trainables.teacher import ABOUT, WEIGHTS

load_exporters()
EPOCHS = 2


@pytest.fixture
def source(teacher_folder, tmp_path):
    """Makes what is exported of a trial with some fields changed, which is not trained."""

    def made(**fields):
        config = TrialConfig(**(TINY | {"epochs": EPOCHS} | fields))
        record = {
            "study": "tiny", "trial": "3", "val_top1": 71.25, "final": {}, "holdout_images": 64,
            "data_fingerprint": "0123456789abcdef", "teacher_top1": 80.0, "teacher_sha256": "0" * 64,
            "full_length": {"epochs": 36}, "searched": {"eps": 1.2}, "config": config.model_dump(),
        }  # fmt: skip
        facts = json.loads((teacher_folder / ABOUT).read_text())
        classes, images = facts["class_names"], sum(facts["class_counts"]["train"])
        weights = tmp_path / STUDENT
        weights.touch()
        return Source(record | {"classes": classes}, config, classes, weights, teacher_folder / WEIGHTS, images)

    return made


@pytest.fixture
def trained(teacher_folder, tmp_path):
    """Trains such a trial by our own loop, without a store, and gives what it reported, an epoch each."""

    def run(config):
        reports = []
        context = RunContext(tmp_path / "ours", lambda metrics: reports.append(metrics) or True)
        assets = Assets(teacher_weights=teacher_folder / WEIGHTS)
        run_trial(config, assets, context)
        return [SimpleNamespace(loss=one["train/loss"], top1=one["val/top1"]) for one in reports]

    return run
