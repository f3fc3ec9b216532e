import numpy as np
import pytest
from PIL import Image

from search.heatmap import DPI, LARGEST, Panel, _side, _spacing, draw_heatmaps


def panel(rows, columns, stem="blocks"):
    values = np.linspace(-0.2, 1, rows * columns).reshape(rows, columns)
    names = [[f"{stem}.{layer}" for layer in range(count - 1)] + ["logits"] for count in (rows, columns)]
    return Panel(values, "teacher: one", names[0], "student: two", names[1])


def draw(path, *panels):
    draw_heatmaps(list(panels), ["one (teacher)", "two (student)"], ["digits", "agreement 90 %"], "CKA", path)
    return np.asarray(Image.open(path).convert("L"))


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (7, 9), (41, 5), (5, 65), (130, 41)])
def test_nothing_is_cut_off_and_the_picture_stays_small(tmp_path, rows, columns):
    pixels = draw(tmp_path / "one.png", panel(rows, columns, stem="a_module.with_a_long_name.blocks"))
    border = 10
    for edge in (pixels[:border], pixels[-border:], pixels[:, :border], pixels[:, -border:]):
        assert (edge == 255).all()
    assert (pixels < 100).any() and max(pixels.shape) < 2 * LARGEST * DPI


def test_panels_stand_side_by_side_and_long_titles_break(tmp_path):
    alone, three = draw(tmp_path / "1.png", panel(5, 5)), draw(tmp_path / "3.png", *[panel(5, 5)] * 3)
    assert three.shape[1] > 2.3 * alone.shape[1] and abs(three.shape[0] - alone.shape[0]) < 60
    long = ["a_model_with_quite_a_long_name_patch16_224 (teacher)", "another_model_with_a_long_name (student)"]
    draw_heatmaps([panel(5, 5)], long, ["digits"], "CKA", tmp_path / "long.png")
    broken = np.asarray(Image.open(tmp_path / "long.png").convert("L"))
    assert broken.shape[0] > alone.shape[0] + 15, "the second part has a line of its own"


def test_a_layer_without_a_value_is_grey_and_explained(tmp_path):
    with_nan = panel(4, 4)
    with_nan.values[:, 2] = np.nan
    assert draw(tmp_path / "nan.png", with_nan).shape[0] > draw(tmp_path / "all.png", panel(4, 4)).shape[0]
    colours = Image.open(tmp_path / "nan.png").convert("RGB").getcolors(maxcolors=2**24)
    assert sorted(colours)[-2][1] == (208, 208, 208), "after white, the column's grey is the most frequent"


@pytest.mark.parametrize("layers", [3, 6, 13, 41, 65, 72, 130, 400])
def test_as_many_layers_are_named_as_can_be_read(layers):
    size, step = _spacing(layers)
    assert 6 <= size <= 72 * _side(layers) / layers * step
    assert (step == 1) == (layers <= 72)
