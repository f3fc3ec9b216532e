"""That every target accounts for every field, for any distiller, and what EXPORT.md says."""

import math

import pytest
import yaml

from search.exporters.base import (
    EXPORTERS,
    NEUTRAL,
    Exporter,
    check_accounts,
    decisive,
    register,
    to_yaml,
    write_export,
)
from trainables.config import Recipe, TrialConfig
from trainables.distillers import DISTILLERS

ALL_THERE_IS = {
    "clip_grad": 1.0, "smoothing": 0.1, "mixup": 0.5, "cutmix": 0.5, "hflip": 0.5, "color_jitter": 0.2,
    "aa": "rand-m5-mstd0.5", "reprob": 0.2, "drop": 0.1, "drop_path": 0.1, "model_ema": True, "warmup_epochs": 1,
    "projector_lr_scale": 2.0, "projector_weight_decay_scale": 0.5, "amp": True, "sched": "step", "opt": "sgd",
}  # fmt: skip


def distilled(name):
    """Fields of a trial with that distiller."""
    stages = {} if name in ("ofa", "fitnet") else {"stages": []}
    return {"distiller": name, "eps": 1.2, **stages}


@pytest.mark.parametrize("distiller", sorted(DISTILLERS))
@pytest.mark.parametrize("target", ["json", "timm", "ofakd", "python", "lightning", "hf"])
@pytest.mark.parametrize("fields", [{}, ALL_THERE_IS], ids=["plain", "everything"])
def test_each_target_refuses_or_accounts_for_every_field(target, distiller, fields, source):
    made = source(**distilled(distiller), **fields)
    exporter = EXPORTERS[target]
    if not exporter.refuses(made):
        check_accounts(exporter.export(made), made.config)


def test_what_nothing_reads_decides_nothing():
    config = TrialConfig(student="s", teacher="t", epochs=1, distiller="kd", stages=[])
    assert not decisive(config) & {
        "eps",
        "stages",
        "taps",
        "projector",
        "mixup_prob",
        "crd_dim",
        "momentum",
        "decay_epochs",
    }
    assert {"temperature", "kd_loss_weight", "lr", "images", "teacher", "student", "seed"} <= decisive(config)
    assert "teacher" not in decisive(config.model_copy(update={"distiller": "none"}))
    assert {"decay_epochs", "momentum"} <= decisive(config.model_copy(update={"sched": "step", "opt": "sgd"}))


def test_neutral_values_are_those_of_fields():
    assert NEUTRAL.keys() <= TrialConfig.model_fields.keys() and set(NEUTRAL) & set(Recipe.model_fields)


def test_export_md_has_three_lists_and_the_command(source, tmp_path):
    made = source(distiller="ofa")
    written = write_export(EXPORTERS["timm"], made, tmp_path / "out")
    assert sorted(written) == ["EXPORT.md", "teacher/config.json", "teacher/model.safetensors", "timm.yaml"]
    text = (tmp_path / "out" / "EXPORT.md").read_text()
    lists = text.split("\n## ")
    assert [one.splitlines()[0] for one in lists[1:]] == ["Run it", "Carried over exactly", "Approximated", "Dropped"]
    assert "python pytorch-image-models/train.py --data-dir data -c timm.yaml" in lists[1]
    assert "`lr`" in lists[2] and "`eps`" in lists[3] and "`stages`" in lists[4]


def test_numbers_are_floats_to_every_reader():
    text = to_yaml({"lr": 5e-4, "min_lr": 1e-5, "warmup_lr": 5e-7, "epochs": 3, "list": [1.0, 2e-6]})
    assert yaml.safe_load(text) == {"lr": 5e-4, "min_lr": 1e-5, "warmup_lr": 5e-7, "epochs": 3, "list": [1.0, 2e-6]}
    assert all("." in line.split()[-1] for line in text.splitlines() if "lr" in line)
    assert not math.isnan(yaml.safe_load(text)["lr"])


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="a target 'json' already"):

        @register
        class Other(Exporter):
            name, title = "json", "another"

            def export(self, source):
                """Nothing."""
