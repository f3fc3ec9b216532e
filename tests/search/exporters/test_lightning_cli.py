"""LightningCLI is run on what is exported, and has the losses of our own loop."""

import csv

import pytest

from search.exporters.base import EXPORTERS, write_export
from tests.search.exporters.running import run_exported

pytest.importorskip("lightning", reason="lightning is not installed")


@pytest.mark.long
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"distiller": "dkd", "stages": [], "eps": 1.0, "clip_grad": 0.5, "warmup_epochs": 1},
        {"distiller": "none", "stages": [], "eps": 1.0},
    ],
    ids=["ofa", "dkd", "alone"],
)
def test_its_losses_are_ours(fields, source, trained, tmp_path):
    made = source(**fields)
    write_export(EXPORTERS["lightning"], made, tmp_path / "out")
    flags = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    run_exported(tmp_path / "out", "-m", "trainables.adapters.lightning", "fit", "--config", "lightning.yaml", *flags)
    (log,) = (tmp_path / "out" / "lightning").rglob("metrics.csv")
    rows = list(csv.DictReader(log.open()))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    top1 = [float(row["val/top1"]) for row in rows if row["val/top1"]]
    ours = trained(made.config)
    assert losses == pytest.approx([epoch.loss for epoch in ours], rel=1e-5)
    assert top1 == pytest.approx([epoch.top1 for epoch in ours], abs=1e-3)
    assert (tmp_path / "out" / "lightning" / "student.safetensors").exists()
