"""A trial in a plain loop, and what it says of the teacher store; as a command, for tests that need a process."""

import json
import sys
from pathlib import Path

import torch

from tests.conftest import TINY
from trainables.assets import Assets
from trainables.config import TrialConfig
from trainables.context import RunContext
from trainables.loop import run_trial

CLOCK = ("time/", "cost/latency")


def train(config, assets, folder):
    """A trial's reports without the clock, and without what they say of the store."""
    reports = []

    def report(metrics):
        reports.append({key: value for key, value in metrics.items() if not key.startswith(CLOCK)})
        return True

    run_trial(config, assets, RunContext(folder, report))
    stored = [{key: one.pop(key) for key in list(one) if key.startswith("teacher/")} for one in reports]
    return reports, [one.get("teacher/stored") for one in stored], stored


if __name__ == "__main__":  # FOLDER WEIGHTS STORE, and fields as JSON
    folder, weights, store, fields = sys.argv[1:]
    torch.set_num_threads(1)
    warnings = []
    assets = Assets(teacher_weights=Path(weights), teacher_store=store, warn=warnings.append)
    reports, shares, _ = train(TrialConfig(**(TINY | json.loads(fields))), assets, Path(folder))
    print(json.dumps([reports, shares, warnings]))
