"""The picture of a trial's learning curve."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from search.ledger import TrialRecord
from search.tracking import curve
from search.tracking.curve import draw_curve

EPOCHS = 12


def made(epochs=EPOCHS, objectives=None, role="trial", trial_id="7", params=None, config=None, **metrics):
    """A record of so many epochs; `metrics` are functions of the epoch, by names with `__` for the slash."""
    record = TrialRecord(trial_id, role, config or {"epochs": EPOCHS}, params or {"eps": 1.2345, "stage1": True})
    record.objectives = objectives or {"val/top1": True}
    own = {
        "train__loss": lambda epoch: 3 / epoch, "train__loss_gt": lambda epoch: 2 / epoch,
        "val__top1": lambda epoch: 90 - 60 / epoch, "val__agreement": lambda epoch: 91 - 50 / epoch,
    }  # fmt: skip
    for epoch in range(1, epochs + 1):
        values = {name.replace("__", "/"): of(epoch) for name, of in (own | metrics).items() if of}
        record.add({"epoch": epoch} | values)
    record.finish()
    return record


@pytest.fixture
def drawn(tmp_path):
    """Draws a record; gives the pixels, and what the picture says on its left, its right and above."""

    def draw(record):
        assert draw_curve(record, tmp_path / "curve.png")
        figure = curve._canvas()
        left, right = figure.axes[:2]

        def legend(axes):
            return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []

        head = [text.get_text() for text in figure.texts]
        return np.asarray(Image.open(tmp_path / "curve.png").convert("RGB")), legend(left), legend(right), head

    return draw


def has_colour(pixels, colour, columns=slice(None)):
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return (np.abs(pixels[:, columns].astype(int) - wanted).max(axis=2) < 12).sum() > 30


def test_the_picture_shows_losses_on_the_left_and_what_ranks_on_the_right(drawn):
    record = made(train__loss_kd=lambda epoch: 1 / epoch, train__loss_ofa=lambda epoch: 0.0)
    pixels, left, right, head = drawn(record)
    assert pixels.shape == (400, 900, 3)
    assert left == ["train/loss", "train/loss_gt", "train/loss_kd"], "what is 0 throughout is left out"
    assert right == ["val/top1", "val/agreement", "best 85.00 in epoch 12"]
    assert head == ["trial 7: complete   val/top1 85.00", "eps=1.23  stage1=True"]
    assert has_colour(pixels, curve.COLOURS[0], slice(0, 450)), "train/loss"
    assert has_colour(pixels, "#e0a030", slice(450, 900)) and not has_colour(pixels, "#e0a030", slice(0, 450))


def test_the_best_epoch_need_not_be_the_last(drawn):
    *_, right, head = drawn(made(val__top1=lambda epoch: 50 - abs(epoch - 4)))
    assert right[-1] == "best 50.00 in epoch 4" and head[0].endswith("val/top1 42.00")


@pytest.mark.parametrize(
    ("objectives", "right"),
    [
        ({"val/loss": False}, ["val/loss", "val/top1", "val/agreement", "best 0.1667 in epoch 12"]),
        ({"val/f": True, "val/loss": False}, ["val/f", "val/top1", "val/agreement", "best 2 in epoch 1"]),
        ({"val/ece": False}, ["val/ece", "val/top1", "val/agreement", "best 0.42 in epoch 12"]),
        ({"val/agreement": True}, ["val/agreement", "val/top1", "best 86.83 in epoch 12"]),
    ],
    ids=lambda value: next(iter(value)),
)
def test_the_objective_is_what_is_marked(drawn, objectives, right):
    metrics = {"val__loss": lambda epoch: 2 / epoch, "val__f": lambda epoch: 2 / epoch, "val__ece": lambda e: 5 / e}
    assert drawn(made(objectives=objectives, **metrics))[2] == right


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen_and_never_the_best(drawn, lost):
    record = made(
        train__loss=lambda epoch: lost if epoch == 2 else 3 / epoch,
        val__top1=lambda epoch: lost if epoch in (5, 12) else 90 - 60 / epoch,
    )
    _, left, right, head = drawn(record)
    assert "train/loss is not finite" in left and "val/top1 is not finite" in right
    assert right[-1] == "best 84.55 in epoch 11"
    assert head[0].startswith("trial 7: failed") and head[1] == "val/top1 was not finite"


def test_nothing_finite_is_drawn_without_a_best(drawn):
    _, _, right, _ = drawn(made(val__top1=lambda epoch: math.nan))
    assert right == ["val/top1", "val/top1 is not finite", "val/agreement"]


@pytest.mark.parametrize("huge", [1e30, 1e300, 1.7e308])
def test_a_loss_beyond_all_bounds_is_drawn(drawn, huge):
    pixels, left, *_ = drawn(made(train__loss=lambda epoch: huge if epoch > 6 else 3 / epoch))
    assert left == ["train/loss", "train/loss_gt"] and has_colour(pixels, curve.COLOURS[1], slice(0, 450))


def test_one_epoch_is_a_point(drawn):
    pixels, _, right, head = drawn(made(epochs=1))
    assert right[-1] == "best 30.00 in epoch 1" and head[1] == "stopped early by the scheduler at epoch 1"
    assert (pixels < 250).any(axis=2)[60:350, 60:450].any()


def test_without_an_epoch_nothing_is_drawn(tmp_path):
    assert not draw_curve(made(epochs=0), tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())


def test_training_on_all_images_has_no_holdout(drawn):
    _, left, right, head = drawn(made(role="delivery", trial_id="delivery", val__top1=None, val__agreement=None))
    assert left and right == [] and head[0] == "delivery: failed"
    assert [text.get_text() for text in curve._canvas().axes[1].texts] == ["none reported"]


def test_odd_words_are_shown_as_they_are(drawn):
    record = made(params={f"eps_stage{number}": number / 3 for number in range(40)})
    record.finish(error="CUDA error: cost $1^{2 and $x$\n  second line")
    _, _, _, head = drawn(record)
    assert head[1] == "CUDA error: cost $1^{2 and $x$    second line"
    assert len(head[2]) == curve.LONGEST_LINE and head[2].endswith("…")


def test_pictures_do_not_depend_on_one_another(tmp_path):
    one, other = made(), made(objectives={"val/loss": False}, val__loss=lambda epoch: 200 / epoch**3)
    draw_curve(one, tmp_path / "first.png")
    draw_curve(other, tmp_path / "other.png")
    draw_curve(one, tmp_path / "again.png")
    first, other, again = ((tmp_path / f"{name}.png").read_bytes() for name in ("first", "other", "again"))
    assert first == again != other


def test_a_picture_is_small_and_takes_a_moment(tmp_path):
    record = made(epochs=300, config={"epochs": 300})
    draw_curve(record, tmp_path / "warm.png")
    begun = time.process_time()
    for _ in range(5):
        draw_curve(record, tmp_path / "curve.png")
    assert (time.process_time() - begun) / 5 < 0.5, "about 0.08 s on a core of 2 GHz"
    assert (tmp_path / "curve.png").stat().st_size < 150_000


def test_its_module_loads_neither_matplotlib_nor_torch():
    code = "import sys, json, search.tracking.curve; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    assert not loaded & {"matplotlib", "torch", "mlflow", "pandas"}
