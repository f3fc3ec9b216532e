from pathlib import Path

import pytest

from tests.conftest import TINY
from trainables.assets import Assets
from trainables.checkpoint import NAME
from trainables.config import TrialConfig
from trainables.context import RunContext, TrialFailure
from trainables.teacher import ABOUT, WEIGHTS, weights_hash
from trainables.teacher_job import prepare_teacher

RECIPE = {"epochs": 2, "batch_size": 64, "hflip": 0.0}


@pytest.fixture(scope="module")
def assets():
    return Assets()


def prepare(folder: Path, kept: Path, assets, report=lambda _: True) -> dict:
    return prepare_teacher(TrialConfig(**TINY), RECIPE, assets, RunContext(folder, report), kept)


def test_a_teacher_is_fitted_once_and_read_after(tmp_path, assets):
    about = prepare(tmp_path / "a", tmp_path / "kept", assets)
    assert about["epochs"] == 2 and about["classes"] == len(about["class_names"]) == len(about["by_class"]) == 10
    assert about["sha256"] == weights_hash(tmp_path / "kept" / WEIGHTS)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [ABOUT, WEIGHTS]
    reports = []
    assert prepare(tmp_path / "b", tmp_path / "kept", assets, reports.append) == about
    assert reports == [] and not (tmp_path / "b").exists()


def test_a_stopped_fitting_goes_on_and_leaves_nothing_half_made(tmp_path, assets):
    with pytest.raises(TrialFailure, match="stopped"):
        prepare(tmp_path / "a", tmp_path / "kept", assets, lambda metrics: metrics["epoch"] < 1)
    assert not (tmp_path / "kept").exists() and (tmp_path / "a" / NAME).exists()
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
