"""How long after a slot is free does the next trial make its first step?

A study of short trials on one slot, with one worker a trial and with two, beside stock Tune with a TorchTrainer in each
trial, as Ray's documentation has it. Ours is the time between two trials' ends less the later one's only epoch, plus
one step of that: suggestion, scheduling, records, tracking and the way through the broker are all in it. Stock's is
read from clocks in the trial's function and its workers; its training function does no more than build the student.
Figures are medians of the later trials.
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

TRIALS, STOCK_TRIALS, IMAGES, BATCH = 8, 3, 80, 20


def measure() -> dict[str, float]:
    """Runs the studies."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, workers in (("one_worker", 1), ("two_workers", 2)):
            ours = _ours(Path(folder, name), workers)
            print(f"{name}, ours: " + ", ".join(f"{gap:.2f}" for gap in ours) + " s", flush=True)
            stock = _stock(Path(folder, f"stock_{name}"), workers)
            print(f"{name}, stock: " + ", ".join(f"{gap:.2f}" for gap in stock) + " s", flush=True)
            figures[f"{name}_s"], figures[f"{name}_stock_s"] = statistics.median(ours), statistics.median(stock)
            figures[f"{name}_over_stock"] = figures[f"{name}_s"] / figures[f"{name}_stock_s"]
    return figures


def _ours(folder: Path, workers: int) -> list[float]:
    from tests.benchmarks.ours import run_study

    flags = {"trials": TRIALS, "epochs": 1, "concurrency": 1, "workers_per_trial": workers}
    fields = {"finalists": 0, "baselines": "[]", "scheduler": "none", "sampler": "random", "max_images": IMAGES}
    fields |= {"batch_size": BATCH, "teacher_recipe": "{epochs: 60}"}  # enough to beat chance, which a study asks for
    _, records = run_study(folder, "vit_to_mlp.py", flags, fields)
    gaps = []
    for before, record in itertools.pairwise(records):
        epoch_s = record["history"][0]["time/epoch_s"]
        gaps.append(record["ended"] - before["ended"] - epoch_s * (1 - BATCH / IMAGES))
    return gaps


def _stock(folder: Path, workers: int) -> list[float]:
    from tests.benchmarks.ours import run

    run([sys.executable, "-c", f"from tests.benchmarks.startup import stock; stock({workers})"], folder)
    clocks = [json.loads(line) for line in (folder / "clocks.jsonl").read_text().splitlines()]
    ends = [at for what, at in clocks if what == "end"]
    firsts = [at for what, at in clocks if what == "step"]
    return [first - end for end, first in zip(ends, firsts[1:], strict=False)]


def stock(workers: int) -> None:
    """Tune trials with a TorchTrainer inside, in this process and its current folder."""
    import ray
    from ray import tune

    clocks = Path.cwd() / "clocks.jsonl"

    def note(what: str) -> None:
        with clocks.open("a") as out:
            out.write(json.dumps([what, time.time()]) + "\n")

    def loop(_):
        import ray.train
        import timm
        import torch

        import trainables.models  # noqa: F401 - knows mixer_nano

        model = timm.create_model("mixer_nano", img_size=16, num_classes=10)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(BATCH, 3, 16, 16)).sum().backward()
        optimizer.step()
        if ray.train.get_context().get_world_rank() == 0:
            note("step")

    def trial(_):
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        TorchTrainer(
            loop,
            scaling_config=ScalingConfig(num_workers=workers),
            run_config=RunConfig(storage_path=str(clocks.parent / "ray")),
        ).fit()
        note("end")

    # the dashboard's State API frees the placement group that a trial leaves behind
    ray.init(address="local", num_cpus=workers + 1, log_to_driver=False, logging_level="ERROR")
    tune.Tuner(
        tune.with_resources(trial, {"CPU": 0.001}),
        tune_config=tune.TuneConfig(num_samples=STOCK_TRIALS, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(clocks.parent / "ray"), verbose=0),
    ).fit()
    ray.shutdown()
