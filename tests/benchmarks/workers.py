"""How many images a second do two workers train, over one?

ResNet-18 with its projectors on digits at 64 pixels, batches of 64 in all, one thread a worker, gloo between them, each
in processes of its own; the answers come from a warm store. Rounds alternate, and the ratio is their median.
"""

import json
import os
import socket
import statistics
import sys
import tempfile
from pathlib import Path

ROUNDS, EPOCHS = 5, 3  # the first epoch computes and writes the answers or warms up


def measure() -> dict[str, float]:
    """Trains with both."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for workers in (1, 2) if number % 2 else (2, 1):
                rates[workers].append(_rate(Path(folder), f"{number}-{workers}", workers))
            print(f"  one {rates[1][-1]:.1f}, two {rates[2][-1]:.1f} images/s", flush=True)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    return {
        "two_over_one": statistics.median(ratios),
        "one_images_per_s": statistics.median(rates[1]),
        "two_images_per_s": statistics.median(rates[2]),
    }


def _rate(folder: Path, name: str, workers: int) -> float:
    import subprocess

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from tests.benchmarks.workers import worker; worker({str(folder)!r}, {name!r}, {workers}, {port}, "
    root, environment = Path(__file__).resolve().parents[2], os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", f"{code}{rank})"], cwd=root, env=environment) for rank in range(workers)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"workers ended with {codes}")
    return statistics.median(json.loads((folder / f"{name}.json").read_text())[1:])


def worker(folder: str, name: str, workers: int, port: int, rank: int) -> None:
    """One worker of a trial, in this process."""
    import torch
    import torch.distributed as dist

    from trainables.assets import Assets
    from trainables.checkpoint import save_weights
    from trainables.config import TrialConfig
    from trainables.context import RunContext
    from trainables.loop import run_trial
    from trainables.teacher import build_teacher

    torch.set_num_threads(1)
    config = TrialConfig(
        data="digits", img_size=64, teacher="resnet18", teacher_source="fit", student="resnet18", epochs=EPOCHS,
        batch_size=64, max_images=256, train_with_holdout=True, teacher_store="views:1",
    )  # fmt: skip
    weights = Path(folder, "teacher.safetensors")
    if not weights.exists() and rank == 0:
        save_weights(build_teacher(config, 10), weights)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
        dist.barrier()
    rates: list[float] = []
    context = RunContext(
        Path(folder, name),
        lambda metrics: rates.append(metrics["time/images_per_s"]) or True,
        rank=rank,
        world_size=workers,
    )
    run_trial(config, Assets("cpu", weights, str(Path(folder, "store"))), context)
    if rank == 0:
        Path(folder, f"{name}.json").write_text(json.dumps(rates))
    if workers > 1:
        dist.destroy_process_group()
