import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score

from tests.conftest import TINY
from tests.trainables.pictures import normalised, raw, with_fitted_head
from trainables.assets import Assets
from trainables.checkpoint import save_weights
from trainables.config import TrialConfig
from trainables.context import RunContext, TrialFailure
from trainables.files import CHECKPOINT, LOG
from trainables.teacher import ABOUT, HOLDOUT, WEIGHTS, build_teacher, weights_hash
from trainables.teacher_job import prepare_teacher

RECIPE = {"epochs": 2, "batch_size": 64, "hflip": 0.0}


@pytest.fixture(scope="module")
def assets():
    return Assets()


def prepare(folder: Path, kept: Path, assets, report=lambda _: True, **fields) -> dict:
    return prepare_teacher(TrialConfig(**TINY | fields), RECIPE, assets, RunContext(folder, report), kept)


def test_a_teacher_is_fitted_once_and_read_after(tmp_path, assets):
    about = prepare(tmp_path / "a", tmp_path / "kept", assets)
    assert about["epochs"] == 2 and about["classes"] == len(about["class_names"]) == len(about["by_class"]) == 10
    assert about["sha256"] == weights_hash(tmp_path / "kept" / WEIGHTS)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [HOLDOUT, LOG, ABOUT, WEIGHTS]
    reports = []
    assert prepare(tmp_path / "b", tmp_path / "kept", assets, reports.append) == about
    assert reports == [] and not (tmp_path / "b").exists()


def test_a_stopped_fitting_goes_on_and_leaves_nothing_half_made(tmp_path, assets):
    with pytest.raises(TrialFailure, match="stopped"):
        prepare(tmp_path / "a", tmp_path / "kept", assets, lambda metrics: metrics["epoch"] < 1)
    assert not (tmp_path / "kept").exists() and (tmp_path / "a" / CHECKPOINT).exists()
    reports = []
    cut = prepare(tmp_path / "a", tmp_path / "kept", assets, lambda metrics: reports.append(metrics["epoch"]) or True)
    assert reports[-1] == 2
    assert cut == prepare(tmp_path / "b", tmp_path / "other", assets)


def test_of_two_studies_that_fit_the_same_teacher_the_first_ones_is_kept(tmp_path, assets):
    def another_is_first(metrics):
        if metrics["epoch"] == 1:
            prepare(tmp_path / "b", tmp_path / "kept", Assets())
        return True

    about = prepare(tmp_path / "a", tmp_path / "kept", assets, another_is_first)
    assert about["sha256"] == weights_hash(tmp_path / "kept" / WEIGHTS)
    assert not (tmp_path / "a").exists()


def test_it_is_judged_by_class_and_the_classes_are_counted(tmp_path, assets):
    splits, good = assets.splits(TrialConfig(**TINY)), {"teacher": "mixer_nano", "teacher_kwargs": {}}
    torch.manual_seed(0)
    model = with_fitted_head(build_teacher(TrialConfig(**TINY | good), 10), splits.teacher_train).eval()
    save_weights(model, tmp_path / "good.safetensors")
    given = {"teacher_source": "checkpoint", "teacher_weights": str(tmp_path / "good.safetensors")}
    about = prepare(tmp_path / "a", tmp_path / "kept", assets, **good, **given)
    images, target = raw(splits.holdout)
    with torch.no_grad():
        said = model(normalised(images, model)).argmax(1)
    assert about["by_class"] == pytest.approx(list(100 * recall_score(target, said, average=None)))
    assert len(set(about["by_class"])) > 3, "the order of the classes would not show"
    assert about["class_counts"] == {
        part: np.bincount(getattr(splits, part).targets).tolist()
        for part in ("train", "teacher_train", "holdout", "test")
    }
    assert about["class_counts"]["train"] == [8] * 10


def test_a_class_without_holdout_images_has_no_recall_and_a_missing_test_split_no_counts(tmp_path):
    few = Assets()
    about = prepare(tmp_path / "a", tmp_path / "kept", few, max_images=4)
    counts = about["class_counts"]["holdout"]
    assert len(counts) == len(about["by_class"]) == 10 and 0 in counts
    assert [recall is None for recall in about["by_class"]] == [count == 0 for count in counts]
    assert "NaN" not in (tmp_path / "kept" / ABOUT).read_text()


def test_it_does_not_depend_on_what_a_delivery_trains_on_or_is_judged_by(tmp_path, assets):
    """All studies of the data share it, so a delivery whose teacher is gone must not fit it to the holdout."""
    reports = []
    about = prepare(
        tmp_path / "a", tmp_path / "kept", assets, lambda metrics: reports.append(metrics) or True,
        train_with_holdout=True, metrics=[f"{__name__}:never_called"],
    )  # fmt: skip
    assert about == prepare(tmp_path / "b", tmp_path / "other", assets)
    assert all("val/top1" in metrics for metrics in reports)


def never_called(logits, target):
    raise AssertionError("a metric of the student's")


def test_a_teacher_of_an_earlier_version_is_read_as_it_is(tmp_path, assets):
    about = prepare(tmp_path / "a", tmp_path / "kept", assets)
    before = {name: about[name] for name in ("top1", "loss", "images", "classes", "sha256", "epochs")}
    (tmp_path / "kept" / ABOUT).write_text(json.dumps(before))
    assert prepare(tmp_path / "b", tmp_path / "kept", assets) == before
