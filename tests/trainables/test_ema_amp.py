"""Averaged weights and mixed precision: what is reported is what is delivered, and what is computed is close."""

import math

import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.trainables.pictures import normalised, raw, with_fitted_head
from trainables.assets import Assets
from trainables.build import build_model
from trainables.checkpoint import load_checkpoint, save_weights
from trainables.context import RunContext
from trainables.loop import STUDENT, run_trial

ALONE = {"distiller": "none", "stages": [], "eps": 1.0, "labels_per_class": 32, "epochs": 3}


@pytest.fixture(scope="module")
def assets():
    return Assets()


def train(config, assets, folder):
    """Trains to the end, but refuses the last report: the checkpoint, which has both models, is kept."""
    reports = []

    def report(metrics):
        reports.append(metrics)
        return metrics["epoch"] < config.epochs

    run_trial(config, assets, RunContext(folder, report))
    return reports


def top1(weights, config, assets):
    """A plain timm model's accuracy on the holdout, by hand."""
    model = timm.create_model(config.student, num_classes=10, **config.student_kwargs)
    model.load_state_dict(weights)
    images, target = raw(assets.splits(config).holdout)
    with torch.no_grad():
        return 100 * (model.eval()(normalised(images, model)).argmax(1) == target).double().mean().item()


def good_start(config, assets, path):
    """Weights of a student that knows most digits already."""
    torch.manual_seed(0)
    model = build_model(config.student, num_classes=10, img_size=16, kwargs=config.student_kwargs)
    save_weights(with_fitted_head(model, assets.splits(config).teacher_train), path)
    return {"student_source": "checkpoint", "student_weights": str(path)}


@pytest.mark.parametrize("better", ["ema", "raw"])
def test_the_delivered_student_is_the_one_that_is_reported(tiny, assets, tmp_path, better):
    if better == "ema":  # a good start that rising rates ruin
        changes = {"student": "mixer_nano", "student_kwargs": {}, "lr": 0.02, "warmup_lr": 1e-7, "warmup_epochs": 2}
        changes |= good_start(tiny(**ALONE, **changes), assets, tmp_path / "good.safetensors")
    else:  # from scratch, with an average that lags far behind
        changes = {"student": "test_resnet", "student_kwargs": {}, "opt": "sgd", "lr": 0.05}
    config = tiny(**ALONE, model_ema=True, model_ema_decay=0.99999, **changes)
    reports = train(config, assets, tmp_path)
    last, state = reports[-1], load_checkpoint(tmp_path)
    student = {name.removeprefix("student.model."): value for name, value in state["taught"].items()}
    assert last["val/top1_raw"] == pytest.approx(top1(student, config, assets))
    assert last["val/top1_ema"] == pytest.approx(top1(state["ema"], config, assets))
    assert abs(last["val/top1_raw"] - last["val/top1_ema"]) > 20, "the test would see little"
    assert last["val/top1"] == last[f"val/top1_{better}"] == max(last["val/top1_raw"], last["val/top1_ema"])
    assert last["val/top1"] == pytest.approx(top1(load_file(tmp_path / STUDENT), config, assets))
    assert last["best/val_top1"] == max(metrics["val/top1"] for metrics in reports)


def test_the_better_one_is_so_by_the_objective(tiny, assets, tmp_path):
    changes = {"student": "test_resnet", "student_kwargs": {}, "opt": "sgd", "lr": 0.05, "model_ema": True}
    config = tiny(**ALONE, model_ema_decay=0.99999, **changes)  # the average lags far behind
    by_top1, by_loss, turned = (
        train(config.model_copy(update={"objective": objective}), assets, tmp_path / objective[4:] / objective[:3])[-1]
        for objective in ("max:top1", "min:loss", "max:loss")
    )
    assert by_loss["val/loss"] == by_loss["val/loss_raw"] < by_loss["val/loss_ema"]
    assert turned["val/loss"] == turned["val/loss_ema"] and turned["val/top1"] == turned["val/top1_ema"]
    assert "val/loss_ema" not in by_top1 and by_top1["val/top1"] == by_top1["val/top1_raw"]
    weights = load_file(tmp_path / "loss" / "max" / STUDENT)
    assert top1(weights, config, assets) == pytest.approx(turned["val/top1"]), "what is told is delivered"


def test_the_average_follows_its_decay_and_leaves_training_alone(tiny, assets, tmp_path):
    plain = train(tiny(**ALONE), assets, tmp_path / "plain")
    averaged = train(tiny(**ALONE, model_ema=True, model_ema_decay=0.5), assets, tmp_path / "averaged")
    assert [metrics["train/loss"] for metrics in averaged] == [metrics["train/loss"] for metrics in plain]
    assert [metrics["val/top1_raw"] for metrics in averaged] == [metrics["val/top1"] for metrics in plain]
    assert not {"val/top1_raw", "val/top1_ema"} & set(plain[-1])
    weights = load_checkpoint(tmp_path / "averaged")
    ahead, behind = weights["taught"]["student.model.head.weight"], weights["ema"]["head.weight"]
    assert 0 < (ahead - behind).norm() < 0.05 * ahead.norm(), "half a step's memory keeps it near"


def test_bfloat16_trains_close_to_float32(tiny, assets, tmp_path):
    changes = {"labels_per_class": 32, "epochs": 2}
    full = train(tiny(**changes), assets, tmp_path / "full")
    half = train(tiny(**changes, amp=True, amp_dtype="bfloat16"), assets, tmp_path / "half")
    for exact, rounded in zip(full, half, strict=True):
        for name in ("train/loss", "train/loss_gt", "train/loss_kd", "train/loss_ofa", "val/loss"):
            assert math.isfinite(rounded[name])
            assert rounded[name] == pytest.approx(exact[name], rel=0.03), name
            assert rounded[name] != exact[name], "nothing was rounded"
    weights = load_file(tmp_path / "half" / STUDENT)
    assert {value.dtype for value in weights.values()} == {torch.float32}, "the weights themselves stay exact"
    assert half[-1]["train/loss"] < half[0]["train/loss"]
