"""Runs one benchmark: prints its table and writes its figures.

python tests/benchmarks/run.py NAME --json FILE
"""

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)
BENCHMARKS = {
    "testbed": "the embedded pair: what the teacher is worth, and what the configuration decides",
    "registry": "every classifier of timm's as student and as teacher",
    "taps": "what tapping the features costs in a student's forward, over ten families",
    "step": "a training step with a warm store, with the teacher, as the official loop has it, and without teaching",
    "options": "what each of the recipe's ways to speed a step up brings",
    "startup": "from a free slot to the next trial's first step, beside stock Tune with TorchTrainer",
    "study": "a study of 16 trials, over the same 16 in a plain loop",
    "workers": "images a second of two workers, over one",
    "packing": "ways to train several small students at once on one GPU",
    "memory": "what a worker grows by over 50 trials",
    "store": "what the teacher store takes, and after how many trials it has paid",
    "samplers": "how far from the optimum searches end, by sampler and scheduler, on synthetic landscapes",
    "warmstart": "what a related pair's earlier study saves",
    "tracking": "what logging costs the training, and how many trials a second a local MLflow server takes",
    "chaos": "what a study loses, doubles or changes while its processes are killed at random",
    "search": "what 1,000 simulated trials cost through Tune, Optuna, ledger and MLflow, and with Ray's own parts",
    "scale": "10,000 trials on 200 slots of a virtual clock: time, memory and disk, and going on with them",
}


def main() -> int:
    """Runs the benchmark of that name; returns the exit code, 1 where a figure must not be or misses its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "name", choices=BENCHMARKS, help="; ".join(f"{name}: {what}" for name, what in BENCHMARKS.items())
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--faults", type=int, metavar="N", help="chaos: how many processes are killed (default: 20)")
    arguments = parser.parse_args()
    options = {"faults": arguments.faults} if arguments.faults is not None else {}
    if options and arguments.name != "chaos":
        parser.error(f"--faults: '{arguments.name}' kills nothing; leave it out")
    benchmark = importlib.import_module(f"tests.benchmarks.{arguments.name}")
    figures = benchmark.measure(**options)
    for key, number in figures.items():
        print(f"{key:<28} {number:10.4g}")
    if arguments.json:
        import torch

        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
        content = {"benchmark": arguments.name, "machine": machine, "figures": figures}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    wrong = benchmark.wrong(figures, **options) if hasattr(benchmark, "wrong") else []
    wrong += benchmark.missed(figures) if hasattr(benchmark, "missed") else []
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
