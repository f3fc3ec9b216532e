"""What does the teacher store take, and after how many trials has it paid?

Epochs of Swin-T teaching ResNet18, as in the benchmark `step`, are trained without a store, with an empty one that they
write, and with a full one, in rounds whose order rotates. `read_share` is the part of a step in which logits are read.
`break_even_trials` is 1 plus what the first trial loses by writing over what each later one saves: 1 where writing
costs nothing, 2 where the second trial has made up for it. The rates are of one file of ImageNet's 1,000 classes in
float16, checksum and conversion included, from the page cache.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

ROUNDS, WARM_UP = 15, 1
KINDS = ("off", "write", "read")
FILE = (64, 256, 1000)  # steps, images a step, classes: 33 MB


def measure() -> dict[str, float]:
    """Times the epochs and the file."""
    import torch

    from tests.benchmarks.step import ON_CPU, ON_GPU, PAIRS, Bench

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    plan = ON_GPU if device.type == "cuda" else ON_CPU
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    reads: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        bench = Bench(*PAIRS["swin_t_resnet18"], plan, device, Path(folder))
        stored = sum(path.stat().st_size for path in store.rglob("*.logits"))
        for number in range(WARM_UP + ROUNDS):
            for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
                if kind == "write":
                    shutil.rmtree(store)
                before, begun = len(bench.read_s), time.perf_counter()
                for _ in range(plan["steps"] // plan["together"]):
                    bench.seconds("computed" if kind == "off" else "warm")
                bench.answers.settle()
                taken[kind].append(time.perf_counter() - begun)
                reads += bench.read_s[before:] if kind == "read" and number >= WARM_UP else []
        bench.close()
    taken = {kind: times[WARM_UP:] for kind, times in taken.items()}
    lost = statistics.median(write - off for write, off in zip(taken["write"], taken["off"], strict=True))
    saved = statistics.median(off - read for off, read in zip(taken["off"], taken["read"], strict=True))
    written, read = _rates()
    return {
        "read_share": sum(reads) / sum(taken["read"]),
        "break_even_trials": 1 + max(0.0, lost) / saved,
        "bytes_per_image": stored / (plan["batch"] * plan["steps"]),
        "write_mb_per_s": written,
        "read_mb_per_s": read,
    }


def _rates() -> tuple[float, float]:
    """Megabytes a second that one file is written with, and read with."""
    import numpy as np
    import torch

    from trainables.teacher_store.parts import Parts
    from trainables.teacher_store.records import Whole, pack, unpack

    steps, batch, classes = FILE
    form = Whole(classes, "float16")
    rows = [torch.randn(batch, classes) for _ in range(steps)]
    megabytes = steps * batch * form.record.itemsize / 1e6
    writes, reads = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            fields = {"values": torch.stack([form.encode(one)["values"] for one in rows])}
            Parts(folder, "key", {}).write("file", pack(form, fields), (0.0,) * 4)
            writes.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            part = Parts(folder, "key", {}).open("file", (steps, batch), form.record)
            brought = unpack(part.records, np.arange(batch))["values"]
            for step in range(steps):
                form.decode({"values": brought[step]})
            reads.append(time.perf_counter() - begun)
    return megabytes / statistics.median(writes), megabytes / statistics.median(reads)
