"""How many images a second do two workers train, over one?

ResNet-18 with its projectors on digits at 128 pixels, batches of 64 in all, one thread a worker, gloo between them,
each in processes of its own; the answers come from a warm store. Rounds alternate, and the ratio is their median.
`apart_over_one` is the same for two trials of one worker each beside each other, which need not talk: no two workers
can be faster on this machine.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from tests.ports import free_port

ROUNDS, EPOCHS = 3, 3  # the first epoch warms up, and in the first round writes the answers


def measure() -> dict[str, float]:
    """Trains in all three ways."""
    rates: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for name in list(rates)[number % 3 :] + list(rates)[: number % 3]:
                workers, trials = (2 if name == "two" else 1), (2 if name == "apart" else 1)
                rates[name].append(_rate(Path(folder), f"{number}-{name}", workers, trials))
            print(
                "  " + ", ".join(f"{name} {found[-1]:.1f}" for name, found in rates.items()) + " images/s", flush=True
            )

    def over_one(name: str) -> float:
        return statistics.median(many / one for one, many in zip(rates["one"], rates[name], strict=True))

    return {
        "two_over_one": over_one("two"),
        "apart_over_one": over_one("apart"),
        **{f"{name}_images_per_s": statistics.median(found) for name, found in rates.items()},
    }


def _rate(folder: Path, name: str, workers: int, trials: int) -> float:
    """Images a second of so many trials at once."""
    import subprocess

    port = free_port()
    root, environment = Path(__file__).resolve().parents[2], os.environ | {"OMP_NUM_THREADS": "1"}
    processes = []
    for trial in range(trials):
        for rank in range(workers):
            call = f"worker({str(folder)!r}, '{name}-{trial}', {workers}, {port}, {rank})"
            command = [sys.executable, "-c", f"from tests.benchmarks.workers import worker; {call}"]
            processes.append(subprocess.Popen(command, cwd=root, env=environment))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"workers ended with {codes}")
    told = [json.loads((folder / f"{name}-{trial}.json").read_text()) for trial in range(trials)]
    return sum(statistics.median(one[1:]) for one in told)


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
        data="digits", img_size=128, teacher="resnet18", teacher_source="fit", student="resnet18", epochs=EPOCHS,
        batch_size=64, max_images=128, train_with_holdout=True, teacher_store="views:1",
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
