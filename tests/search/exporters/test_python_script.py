"""The script is run, and has the losses of our own loop."""

import re
import subprocess
import sys

import pytest

from search.exporters.base import EXPORTERS, write_export
from search.exporters.images import write_images

LINE = re.compile(r"epoch\s+\d+  loss (\S+)  val top1 (\S+)")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"student": "mixer_nano", "student_kwargs": {}, "eps": 1.3, "stages": [2, 3], "temperature": 2.0,
         "enhance": "target"},
        {"distiller": "kd", "stages": [], "eps": 1.0, "temperature": 3.0, "normalize_loss_weights": True,
         "aa": "rand-m5"},
        {"distiller": "none", "stages": [], "eps": 1.0, "bce_loss": True, "reprob": 0.5, "hflip": 0.5},
        {"student": "resnet10t", "student_kwargs": {}, "opt": "sgd", "lr": 0.01, "eps": 1.0, "stages": [2, 4],
         "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "clip_grad": 1.0, "drop_path": 0.1},
        {"projector": "pooled", "temperature_squared": True, "temperature": 2.0, "projector_lr_scale": 0.5,
         "warmup_epochs": 1},
    ],
    ids=["ofa", "mixer_nano", "kd", "alone", "conv and mixup", "pooled"],
)  # fmt: skip
def test_its_losses_are_ours(fields, source, trained, tmp_path):
    made = source(**fields)
    write_export(EXPORTERS["python"], made, tmp_path / "out")
    write_images(made.config, tmp_path / "out" / "data")
    command = [sys.executable, "train_student.py", "--data", "data", "--device", "cpu"]
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}  # and not our own packages
    found = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    lines = [tuple(map(float, match)) for match in LINE.findall(found.stdout)]
    ours = [(epoch.loss, epoch.top1) for epoch in trained(made.config)]
    assert len(lines) == len(ours) == 2
    for (loss, top1), (our_loss, our_top1) in zip(lines, ours, strict=True):
        assert loss == pytest.approx(our_loss, rel=1e-3)  # convolutions round by the order of memory
        assert top1 == pytest.approx(our_top1, abs=2.0)
    assert (tmp_path / "out" / "student.safetensors").exists()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"distiller": "crd", "stages": [], "eps": 1.0}, "distiller: the script has ofa, kd, none, not crd"),
        ({"logit_standardization": True}, "logit_standardization: the script has no such thing"),
        ({"student": "cyclemlp_b1", "student_kwargs": {}}, "student: cyclemlp_b1 is no model of timm's"),
    ],
)
def test_what_it_cannot_do_is_refused(fields, reason, source):
    assert any(reason in one for one in EXPORTERS["python"].refuses(source(**fields)))
