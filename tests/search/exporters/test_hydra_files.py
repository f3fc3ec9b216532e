"""Hydra is run on what is exported; the sweep is checked against the sweeper's own fields."""

import re
from dataclasses import replace

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.exporters.base import EXPORTERS, write_export
from search.exporters.hydra_files import SWEEPER, sweep_params
from tests.search.exporters.running import run_exported

SEARCHED = {
    "stage1": CategoricalDistribution([True, False]),
    "stage2": CategoricalDistribution([True, False]),
    "eps": FloatDistribution(0.8, 2.5),
    "eps_per_stage": CategoricalDistribution([True, False]),
    "eps_stage1": FloatDistribution(0.8, 2.5),
    "temperature": FloatDistribution(0.5, 8.0, log=True),
    "batch_size": IntDistribution(16, 64, step=16),
    "trick": CategoricalDistribution(["a", "b"]),
    "mixup": CategoricalDistribution([0.0, 1.0, 0.8]),
    "aa": CategoricalDistribution([None, "rand-m9"]),
    "opt": CategoricalDistribution(["adamw", "true", "it's"]),
    "smoothing": FloatDistribution(0.0, 0.2, step=0.1),
    "decay_epochs": IntDistribution(1, 100, log=True),
    "model_ema": CategoricalDistribution([True, False]),
}


def test_the_search_in_hydras_words(source):
    params, lost = sweep_params(SEARCHED, source().config)
    assert params == {
        "trial.eps": "interval(0.8,2.5)",
        "trial.temperature": "tag(log,interval(0.5,8.0))",
        "trial.batch_size": "range(16,65,step=16)",
        "trial.mixup": "choice(0.0,1.0,0.8)",
        "trial.opt": r"choice('adamw','true','it\'s')",
        "trial.smoothing": "range(0.0,0.25,step=0.1)",
        "trial.decay_epochs": "tag(log,int(interval(1,100)))",
        "trial.model_ema": "choice(true,false)",
        "trial.stages": "choice([1],[2],[1,2])",
    }
    assert set(lost) == {"eps_per_stage", "eps_stage1", "trick", "aa"}


def test_hydra_reads_them(source):
    pytest.importorskip("hydra", reason="hydra-core is not installed")
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params, _ = sweep_params(SEARCHED, source().config)
    parsed = OverridesParser.create().parse_overrides([f"{name}={text}" for name, text in params.items()])
    read = {one.key_or_group: one for one in parsed}
    assert list(read["trial.mixup"].sweep_string_iterator()) == ["0.0", "1.0", "0.8"]
    assert list(read["trial.smoothing"].sweep_string_iterator()) == ["0.0", "0.1", "0.2"]
    assert [str(getattr(one, "text", one)) for one in read["trial.opt"].value().list] == ["adamw", "true", "it's"]


def test_its_files_have_known_keys(source, tmp_path):
    made = replace(source(), distributions=SEARCHED, trials=7)
    write_export(EXPORTERS["hydra"], made, tmp_path / "out")
    sweep = yaml.safe_load((tmp_path / "out" / "sweep.yaml").read_text())
    assert set(sweep["hydra"]["sweeper"]) <= SWEEPER and sweep["hydra"]["sweeper"]["n_trials"] == 7
    experiment = (tmp_path / "out" / "experiment" / "best.yaml").read_text()
    assert experiment.startswith("# @package _global_\n")


@pytest.mark.long
def test_its_losses_are_ours(source, trained, tmp_path):
    pytest.importorskip("hydra", reason="hydra-core is not installed")
    made = source()
    write_export(EXPORTERS["hydra"], made, tmp_path / "out")
    printed = run_exported(tmp_path / "out", "-m", "trainables.adapters.hydra", "--config-dir", ".", "trial.epochs=2")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)  val", printed)]
    assert losses == pytest.approx([epoch.loss for epoch in trained(made.config)], rel=1e-3)
