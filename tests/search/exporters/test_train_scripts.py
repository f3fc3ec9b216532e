"""What goes to timm's and the official train.py: known keys only, the losses' weights, and what is refused."""

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from search.exporters import ofakd_train, timm_train
from search.exporters.base import EXPORTERS, write_export
from trainables.losses import ofa_loss

PAPER = {"student": "resnet18", "student_kwargs": {}, "teacher": "deit_tiny_patch16_224", "teacher_kwargs": {},
         "img_size": 224, "eps": [1.5, 1.2, 1.3], "stages": [2, 4], "temperature": 2.0}  # fmt: skip


def written(target, made, folder):
    write_export(EXPORTERS[target], made, folder)
    return yaml.safe_load((folder / f"{target}.yaml").read_text())


def test_the_official_script_gets_its_own_keys(source, tmp_path):
    made = source(**PAPER, normalize_loss_weights=True, temperature_squared=True)
    keys = written("ofakd", made, tmp_path / "out")
    assert keys.keys() <= ofakd_train.KEYS
    assert keys["model"] == "resnet18" and keys["teacher"] == "deit_tiny_patch16_224" and keys["num_classes"] == 10
    assert keys["ofa_eps"] == [1.5, 1.2, 1.3] and keys["ofa_stage"] == [2, 4] and keys["ofa_temperature"] == 2.0
    assert [keys[f"{name}_loss_weight"] for name in ("gt", "kd", "ofa")] == pytest.approx([1 / 3, 4 / 3, 4 / 3])
    assert keys["model_ema_decay"] == [0.9998] and keys["teacher_pretrained"] == "teacher.pth"
    assert set(torch.load(tmp_path / "out" / "teacher.pth", weights_only=True)) == set(load_file(made.teacher))


def test_swin_s_weights_are_laid_out_as_timm_0_6_5_had_them(tmp_path):
    torch.manual_seed(0)
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=10)
    save_file({name: weight.contiguous() for name, weight in swin.state_dict().items()}, tmp_path / "swin.safetensors")
    old = ofakd_train.old_weights("swin_tiny_patch4_window7_224", tmp_path / "swin.safetensors")
    assert torch.equal(old["head.weight"], swin.head.fc.weight) and "head.fc.weight" not in old
    assert torch.equal(old["layers.0.downsample.norm.weight"], swin.layers[1].downsample.norm.weight)
    assert {"layers.0.blocks.1.attn_mask", "layers.3.blocks.0.attn.relative_position_index"} <= set(old)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"img_size": 32}, "img_size: the script is for 224 pixels, and the trial has 32"),
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
    for name, weight in load_file(made.teacher).items():
        assert torch.equal(weight, teacher.state_dict()[name])


@pytest.mark.parametrize("target", ["timm", "ofakd", "hf", "lightning", "hydra", "torchdistill"])
def test_the_checkpoint_that_the_student_begins_with_goes_along(source, tmp_path, target):
    save_file({"a": torch.ones(2)}, tmp_path / "mine.safetensors")
    fields = PAPER if target == "ofakd" else {}
    made = source(**fields, student_source="checkpoint", student_weights=str(tmp_path / "mine.safetensors"))
    written = write_export(EXPORTERS[target], made, tmp_path / "out")
    (name,) = [one for one in written if one.startswith("start.")]
    texts = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.suffix in (".yaml", ".json")]
    assert any(name in text for text in texts) and not any(str(tmp_path / "mine") in text for text in texts)
    assert EXPORTERS["python"].refuses(made)


def test_what_both_scripts_would_pass_over_is_refused(source):
    for target, fields in (("timm", {}), ("ofakd", PAPER)):
        assert not EXPORTERS[target].refuses(source(**fields, bce_loss=True, smoothing=0.1))
        (reason,) = EXPORTERS[target].refuses(source(**fields, bce_loss=True))
        assert reason.startswith("bce_loss: train.py reads it only with smoothing")
        (reason,) = EXPORTERS[target].refuses(source(**fields, curriculum_temperature=True))
        assert reason.startswith("curriculum_temperature: ")


def test_a_distiller_that_timm_has_not_leaves_the_plain_recipe(source, tmp_path):
    keys = written("timm", source(distiller="crd", stages=[], eps=1.0), tmp_path / "out")
    assert not any(name.startswith("kd_") for name in keys) and keys["lr"] == 2e-3
    assert "without any teacher" in (tmp_path / "out" / "EXPORT.md").read_text()


def test_a_model_of_ours_is_not_timms(source):
    (reason,) = EXPORTERS["timm"].refuses(source(student="mixer_nano", student_kwargs={}))
    assert reason.startswith("student: mixer_nano is no model of timm's own")
