"""What does each way to speed a step up bring, and is it worth its place in the recipe?

One warm step, as in the benchmark `step`, with all options of the recipe as they are by default on this device, and
with each of them changed: the ratio is the changed step's time over the default's, so that above 1 means that the
default is right. `compile_s` is what the first compiled step takes beyond the others, in a process that has compiled
nothing yet; `again_s` is that of a second trial in the same process.
"""

import statistics
import tempfile
import time
from pathlib import Path

ROUNDS, WARM_UP = 15, 3
OPTIONS = ("amp", "channels_last", "opt_fused", "cuda_graph", "torchcompile")


def measure() -> dict[str, float]:
    """Times the steps."""
    import torch

    from tests.benchmarks.step import ON_CPU, ON_GPU

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    plan = {**(ON_GPU if device.type == "cuda" else ON_CPU), "steps": 4, "loader_workers": 0}
    figures: dict[str, float] = {}
    for pair in plan["pairs"]:
        figures |= {f"{pair}_{name}": value for name, value in _pair(pair, plan, device).items()}
    return figures


def _pair(name: str, plan: dict, device) -> dict[str, float]:
    import torch

    from tests.benchmarks.step import PAIRS, Bench
    from trainables.config import BY_DEVICE

    def bench(**fields) -> Bench:
        return Bench(*PAIRS[name], plan, device, Path(folder), **fields)

    def first(one: Bench) -> float:
        begun = time.perf_counter()
        one.seconds("warm")
        return time.perf_counter() - begun

    with tempfile.TemporaryDirectory() as folder:
        usual = bench()
        benches = {"default": usual}
        benches |= {option: bench(**{option: not getattr(usual.config, option)}) for option in OPTIONS}
        benches["none"] = bench(**dict.fromkeys(BY_DEVICE["cpu"], False))
        again = bench(torchcompile=True)
        found = {"compile_s": first(benches["torchcompile"]), "again_s": first(again)}
        again.close()
        if device.type == "cuda":
            benches["cudnn_benchmark"] = usual  # no field: it brings nothing
        taken = {kind: [] for kind in benches}
        for number in range(WARM_UP + ROUNDS):
            kinds = list(benches)
            shift = number % len(kinds)
            for kind in kinds[shift:] + kinds[:shift]:
                torch.backends.cudnn.benchmark = kind == "cudnn_benchmark"
                taken[kind].append(benches[kind].seconds("warm"))
        for one in benches.values():
            one.close()
    taken = {kind: times[WARM_UP:] for kind, times in taken.items()}
    found |= {
        f"{kind}_changed": statistics.median(a / b for a, b in zip(times, taken["default"], strict=True))
        for kind, times in taken.items()
        if kind != "default"
    }
    print(f"{name}, {statistics.median(taken['default']):.4f} s a step by default:", flush=True)
    for kind, value in found.items():
        print(f"  {kind:<24}{value:8.3f}", flush=True)
    return found
