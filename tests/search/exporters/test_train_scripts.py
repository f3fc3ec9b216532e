"""What goes to timm's and the official train.py: known keys only, the losses' weights, and what is refused."""

import pytest
import timm
import torch
import yaml

from search.exporters import ofakd_train, timm_train
from search.exporters.base import EXPORTERS, write_export
from trainables.losses import ofa_loss

PAPER = {"student": "resnet18", "student_kwargs": {}, "teacher": "deit_tiny_patch16_224", "teacher_kwargs": {},
         "img_size": 224, "eps": [1.5, 1.2, 1.3], "stages": [2, 4], "temperature": 2.0}  # fmt: skip


def written(target, made, folder):
    write_export(EXPORTERS[target], made, folder)
    return yaml.safe_load((folder / f"{target}.yaml").read_text())


def test_the_official_script_gets_its_own_keys(source, tmp_path):
    keys = written("ofakd", source(**PAPER, normalize_loss_weights=True, temperature_squared=True), tmp_path / "out")
    assert keys.keys() <= ofakd_train.KEYS
    assert keys["model"] == "resnet18" and keys["teacher"] == "deit_tiny_patch16_224" and keys["num_classes"] == 10
    assert keys["ofa_eps"] == [1.5, 1.2, 1.3] and keys["ofa_stage"] == [2, 4] and keys["ofa_temperature"] == 2.0
    assert [keys[f"{name}_loss_weight"] for name in ("gt", "kd", "ofa")] == pytest.approx([1 / 3, 4 / 3, 4 / 3])
    assert keys["model_ema_decay"] == [0.9998]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"img_size": 32}, "img_size: the script's projectors are for 224 pixels, and the trial has 32"),
        ({"student": "deit_tiny_patch16_224"}, "student: the script has no deit_tiny_patch16_224"),
        ({"student_kwargs": {"depth": 4}}, "student_kwargs: the script builds"),
        ({"distiller": "rsd", "stages": [], "eps": 1.0}, "distiller: the script has no working rsd"),
        ({"enhance": "target"}, "enhance: the script has the form 'all' only"),
        ({"projector": "pooled"}, "projector, taps: the script has its own"),
        ({"opt": "muon"}, "opt: timm 0.6.5, on which the script stands, has no 'muon'"),
    ],
)
def test_another_experiment_is_refused(source, fields, reason):
    found = EXPORTERS["ofakd"].refuses(source(**(PAPER | fields)))
    assert any(one.startswith(reason) for one in found), found


def test_timm_gets_its_own_keys_and_t_squared_out_of_the_weight(source, tmp_path):
    keys = written("timm", source(**PAPER, kd_loss_weight=0.8), tmp_path / "out")
    assert keys.keys() <= timm_train.KEYS
    assert keys["kd_temperature"] == 2.0 and keys["task_loss_weight"] == 1.0
    assert keys["distill_loss_weight"] == pytest.approx(0.8 / 4)
    assert keys["kd_model_name"] == "local-dir:teacher"
    text = (tmp_path / "out" / "EXPORT.md").read_text().split("\n## ")
    assert "`stages`" in text[4] and "`eps`" in text[3]


def test_the_weight_has_the_gradient_of_ofa_at_eps_1():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
    target, temperature = torch.arange(4), 3.0
    ours = 0.8 * ofa_loss(student, teacher, target, eps=1.0, temperature=temperature)
    learned, taught = ((one / temperature).log_softmax(1) for one in (student, teacher))
    theirs = (
        0.8
        / temperature**2
        * temperature**2
        * torch.nn.functional.kl_div(learned, taught, log_target=True, reduction="batchmean")
    )  # as train.py has it
    (one,), (other,) = (torch.autograd.grad(loss, student, retain_graph=True) for loss in (ours, theirs))
    assert torch.allclose(one, other, atol=1e-7)


def test_timm_loads_the_teacher_s_folder(source, tmp_path, monkeypatch):
    made = source()
    write_export(EXPORTERS["timm"], made, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    teacher = timm.create_model("local-dir:teacher", pretrained=True, num_classes=10)
    from safetensors.torch import load_file

    for name, weight in load_file(made.teacher).items():
        assert torch.equal(weight, teacher.state_dict()[name])


def test_a_distiller_that_timm_has_not_leaves_the_plain_recipe(source, tmp_path):
    keys = written("timm", source(distiller="crd", stages=[], eps=1.0), tmp_path / "out")
    assert not any(name.startswith("kd_") for name in keys) and keys["lr"] == 2e-3
    assert "without any teacher" in (tmp_path / "out" / "EXPORT.md").read_text()


def test_a_model_of_ours_is_not_timms(source):
    (reason,) = EXPORTERS["timm"].refuses(source(student="mixer_nano", student_kwargs={}))
    assert reason.startswith("student: mixer_nano is no model of timm's own")
