"""A student of the user's own: a module beside the study, that Ray's workers must find too."""

import pytest
import safetensors.torch

from tests.search.studies import MAIN_SPACE, run

MODULE = """
import torch.nn as nn


def block(inside, outside):
    return nn.Sequential(nn.Conv2d(inside, outside, 3, 2, 1), nn.BatchNorm2d(outside), nn.ReLU())


def make(num_classes, width):
    blocks = [block(3, width), block(width, 2 * width), block(2 * width, 4 * width)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, num_classes))
"""


@pytest.mark.long
def test_a_module_in_the_current_folder_is_searched_and_delivered(tmp_path):
    (tmp_path / "my_student.py").write_text(MODULE)
    settings = ["student=my_student:make", "student_kwargs={width: 4}", 'taps=["0","1","2"]']
    ran = run("--space", MAIN_SPACE, "--smoke", "--name", "own", "--concurrency", "1", "--set", *settings, cwd=tmp_path)
    assert ran.code == 0, ran.err
    names: dict = {}
    exec(MODULE, names)
    plain = names["make"](num_classes=10, width=4)
    plain.load_state_dict(safetensors.torch.load_file(tmp_path / "runs" / "own" / "best_student.safetensors"))
