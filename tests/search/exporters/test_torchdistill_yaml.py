"""torchdistill is run on what is exported, and its loss is ours on the same batch."""

import re

import pytest
import torch

from search.exporters.base import EXPORTERS, write_export
from search.exporters.images import write_images
from tests.search.exporters.running import run_exported

pytest.importorskip("torchdistill", reason="torchdistill is not installed")

FIELDS = [
    {"smoothing": 0.1, "normalize_loss_weights": True},
    {"eps": 1.4, "stages": [2], "temperature": 2.0, "enhance": "target", "temperature_squared": True},
    {"distiller": "kd", "stages": [], "eps": 1.0, "temperature": 4.0, "bce_loss": True},
]


@pytest.mark.long
@pytest.mark.parametrize("fields", FIELDS, ids=["per stage", "one eps", "kd"])
def test_its_loss_is_ours_on_the_same_batch(fields, source, tmp_path, monkeypatch):
    from torchdistill.common import yaml_util
    from torchdistill.core.distillation import DistillationBox
    from torchdistill.models.registry import get_model

    from trainables.adapters.common import Parts

    made = source(**fields)
    write_export(EXPORTERS["torchdistill"], made, tmp_path / "out")
    write_images(made.config, tmp_path / "out" / "data")
    monkeypatch.chdir(tmp_path / "out")
    config = yaml_util.load_yaml_file("torchdistill.yaml")
    models = [config["models"][f"{role}_model"] for role in ("teacher", "student")]
    teacher, student = (get_model(model["key"], **model["kwargs"]) for model in models)
    box = DistillationBox(teacher, student, config["datasets"], config["train"], torch.device("cpu"), None, False, 1)
    ours = Parts(made.config.model_dump(), made.teacher)
    for name, weight in ours.taught.student.state_dict().items():
        assert torch.equal(weight, student.state_dict()[name]), "both begin with the same weights"
    box.pre_epoch_process(epoch=0)
    for images, target, index in list(ours.stream().epoch(0))[:2]:
        ours.taught.train()
        expected = ours.terms(images, target, index, 0, 0)["loss"]
        assert box.forward_process(images, target, {}).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.long
def test_it_trains_and_leaves_the_student(source, trained, tmp_path):
    made = source(mixup=0.4, smoothing=0.1, clip_grad=1.0, warmup_epochs=1, epochs=3)
    write_export(EXPORTERS["torchdistill"], made, tmp_path / "out")
    write_images(made.config, tmp_path / "out" / "data")
    printed = run_exported(tmp_path / "out", "-m", "trainables.adapters.torchdistill", "--config", "torchdistill.yaml")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)  val", printed)]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert losses[0] == pytest.approx(trained(made.config)[0].loss, rel=0.1)  # other images in another order
    assert (tmp_path / "out" / "student.safetensors").exists()


def test_what_it_cannot_do_is_refused(source):
    (reason,) = EXPORTERS["torchdistill"].refuses(source(distiller="rsd", stages=[], eps=1.0))
    assert reason.startswith("distiller: the plugin has ofa, kd, not rsd")
