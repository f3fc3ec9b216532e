"""A trial as a Hydra application: our own loop, one process, no Ray.

    python -m trainables.adapters.hydra --config-dir .                       # the exported configuration
    python -m trainables.adapters.hydra --config-dir . --config-name sweep -m    # the search

The value that a sweeper sees is the objective's metric after the last epoch.
Source: https://hydra.cc/docs/advanced/hydra-command-line-flags/
"""

from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf

from trainables.assets import Assets
from trainables.config import TrialConfig
from trainables.context import RunContext
from trainables.loop import run_trial


@hydra.main(version_base=None, config_path=None, config_name="config")
def train(settings: DictConfig) -> float:
    """Trains `settings.trial` and returns what ranks it; its files lie in Hydra's folder of the run."""
    config = TrialConfig(**OmegaConf.to_container(settings.trial))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = settings.teacher_store and to_absolute_path(settings.teacher_store)
    assets = Assets(device, Path(to_absolute_path(settings.teacher_weights)), store)
    reports = []

    def report(metrics: dict[str, float]) -> bool:
        reports.append(metrics)
        print(
            f"epoch {metrics['epoch']:3}  loss {metrics['train/loss']:.6f}  val top1 {metrics['val/top1']:.2f}",
            flush=True,
        )
        return True

    run_trial(config, assets, RunContext(Path(HydraConfig.get().runtime.output_dir), report, device=device))
    return reports[-1][f"val/{config.judged_by}"]


if __name__ == "__main__":
    train()
