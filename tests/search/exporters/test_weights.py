"""The student's folder is loaded by timm, and its graphs are run beside PyTorch."""

from dataclasses import replace

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from search.exporters.base import EXPORTERS, write_export
from search.exporters.graphs import write_onnx, write_torch_export
from trainables.checkpoint import save_weights
from trainables.loop import build_student


@pytest.fixture
def student(source, tmp_path):
    """What is exported of a trial, with real weights."""

    def made(**fields):
        one = source(**fields)
        torch.manual_seed(0)
        save_weights(build_student(one.config, 10).model, one.weights)
        return one

    return made


def test_timm_loads_the_folder(student, tmp_path):
    made = student()
    final = {"seeds": [1, 2, 3], "val/top1": [70.0, 71.0, 72.0], "test/top1": [68.0, 70.0, 72.0]}
    write_export(EXPORTERS["weights"], replace(made, record=made.record | {"final": final}), tmp_path / "out")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    for name, weight in load_file(made.weights).items():
        assert torch.equal(weight, loaded.state_dict()[name])
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "unknown" and front["datasets"] == ["digits"]
    assert "| top1 | test split, 3 seed(s) | 70.00 (95% interval 65.03 to 74.97) |" in card


PLAIN = {"student_kwargs": {}, "img_size": 32, "stages": [], "eps": 1.0, "distiller": "kd"}


@pytest.mark.parametrize(
    "fields", [{}, PLAIN | {"student": "resnet10t"}, PLAIN | {"student": "torchvision.models:mobilenet_v3_small"}]
)
def test_torch_export_gives_the_same_logits(student, tmp_path, fields):
    assert write_torch_export(student(**fields), tmp_path / "student.pt2") < 1e-5


@pytest.mark.long
def test_onnx_gives_the_same_logits(student, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    assert write_onnx(student(), tmp_path / "student.onnx") < 1e-4
