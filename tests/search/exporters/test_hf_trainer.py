"""The Hugging Face Trainer is run on what is exported, and has the losses of our own loop."""

import json

import pytest

from search.exporters.base import EXPORTERS, write_export
from tests.search.exporters.running import run_exported

pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.long
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"distiller": "rkd", "stages": [], "eps": 1.0, "clip_grad": 0.5, "warmup_epochs": 1},
        {"distiller": "none", "stages": [], "eps": 1.0},
    ],
    ids=["ofa", "rkd", "alone"],
)
def test_its_losses_are_ours(fields, source, trained, tmp_path):
    made = source(**fields)
    write_export(EXPORTERS["hf"], made, tmp_path / "out")
    run_exported(tmp_path / "out", "-m", "trainables.adapters.hf", "training_args.json", "distill.json")
    (state,) = (tmp_path / "out" / "hf").glob("checkpoint-*/trainer_state.json")
    logged = json.loads(state.read_text())["log_history"]
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    top1 = [entry["eval_top1"] for entry in logged if "eval_top1" in entry]
    ours = trained(made.config)
    assert losses == pytest.approx([epoch.loss for epoch in ours], rel=1e-3)  # the Trainer rounds what it logs
    assert top1 == pytest.approx([epoch.top1 for epoch in ours], abs=1e-3)
    assert (tmp_path / "out" / "hf" / "student.safetensors").exists()
