"""How are several trials of small students best trained at once on one GPU?

`STUDENT_pack` is how many times faster four whole trials of ours end in a pack (`trainables/pack.py`) than one after
another, on a CPU too, where a pack only loads less.

The rest, on a GPU only, are the ways that a pack might have gone. Four students train with OFA-KD's loss on one batch
of 128 images of 32 pixels, in bfloat16, each with an AdamW of its own; a figure is how many times faster a trial's step
is than `alone`, where one student trains and Python launches every kernel.

- `graph`: one student, its step replayed as a CUDA graph.
- `streams`, `threads`: four in one process, a stream each, launched in turn or by a thread each.
- `graphs`: four in one process, a graph and a stream each.
- `processes`: four processes, as lanes that share a GPU.
- `vectorised`: four as one, their parameters stacked, by `torch.func.vmap`.
"""

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

STUDENTS = ("resnet18", "mixer_nano")
TOGETHER, STEPS, WARM_UP, ROUNDS = 4, 40, 5, 3
SIZE, BATCH, CLASSES = 32, 128, 100
PACK_EPOCHS, CPU_IMAGES = 5, 384


def measure() -> dict[str, float]:
    """Trains in each way."""
    import torch

    torch.set_num_threads(1)
    figures: dict[str, float] = {f"{student}_pack": _pack(student) for student in STUDENTS}
    for student in STUDENTS if torch.cuda.is_available() else ():
        ways = {
            "alone": lambda: _eager(student, 1),  # noqa: B023
            "graph": lambda: _graphs(student, 1),  # noqa: B023
            "streams": lambda: _eager(student, TOGETHER),  # noqa: B023
            "threads": lambda: _threads(student),  # noqa: B023
            "graphs": lambda: _graphs(student, TOGETHER),  # noqa: B023
            "processes": lambda: _processes(student),  # noqa: B023
            "vectorised": lambda: _vectorised(student),  # noqa: B023
        }
        seconds = {name: way() for name, way in ways.items()}
        for name, value in seconds.items():
            figures[f"{student}_{name}"] = seconds["alone"] / value
            print(f"{student:<12}{name:<12}{value * 1e3:8.2f} ms a trial's step", flush=True)
    return figures


def _pack(student: str) -> float:
    import torch

    from trainables.assets import Assets
    from trainables.checkpoint import save_weights
    from trainables.config import TrialConfig
    from trainables.context import RunContext
    from trainables.loop import run_trial
    from trainables.pack import Pack, Packed
    from trainables.teacher import build_teacher

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        assets = Assets(device, Path(folder, "teacher.safetensors"), str(Path(folder, "store")))
        most = None if device.type == "cuda" else CPU_IMAGES
        configs = [
            TrialConfig(
                data="digits", img_size=SIZE, max_images=most, teacher="test_vit", teacher_source="fit",
                student=student, epochs=PACK_EPOCHS, batch_size=BATCH, eps=1 + number / 5, torchcompile=False,
            )
            for number in range(TOGETHER)
        ]  # fmt: skip
        save_weights(build_teacher(configs[0], 10), assets.teacher_weights)

        def place(name: str) -> RunContext:
            return RunContext(Path(folder, name), lambda _: True, device=device)

        run_trial(configs[0], assets, place("first"))  # keeps the teacher's answers for all
        begun = time.perf_counter()
        for number, config in enumerate(configs):
            run_trial(config, assets, place(f"in turn {number}"))
        in_turn = time.perf_counter() - begun
        errors, pack = [], Pack(assets, TOGETHER)
        begun = time.perf_counter()
        trials = [
            Packed(config, place(f"pack {number}"), 0, False, errors.append) for number, config in enumerate(configs)
        ]
        pack.begin(trials)
        while len(pack):
            pack.advance()
        packed = time.perf_counter() - begun
    if any(errors):
        raise RuntimeError(f"packed trials failed: {errors}")
    print(f"{student:<12}four trials: {in_turn:.1f} s in turn, {packed:.1f} s packed", flush=True)
    return in_turn / packed


class _Trial:
    """One student, its optimizer and the batch that all trials share."""

    def __init__(self, student: str, seed: int, capturable: bool = False):
        import torch

        from trainables.config import TrialConfig
        from trainables.loop import build_student

        config = TrialConfig(teacher="test_vit", student=student, epochs=1, img_size=SIZE)
        torch.manual_seed(seed)
        self.student = build_student(config, CLASSES).to("cuda").to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), 1e-4, fused=True, capturable=capturable)
        torch.manual_seed(0)
        images = torch.randn(BATCH, 3, SIZE, SIZE, device="cuda")
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.target = torch.randint(CLASSES, (BATCH,), device="cuda")
        self.answer = torch.randn(BATCH, CLASSES, device="cuda")
        self.stream = torch.cuda.Stream()

    def loss(self, output, eps):
        import torch
        import torch.nn.functional as F

        outputs = torch.stack([output.logits, *output.stage_logits.values()]).float()
        hard = F.one_hot(self.target, CLASSES)
        weights = (self.answer.softmax(1) + hard) ** eps - hard
        taught = -(weights * outputs.log_softmax(-1)).sum(-1).mean(-1).sum()
        return F.cross_entropy(output.logits.float(), self.target) + taught

    def step(self) -> None:
        import torch

        with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
            output = self.student(self.images)
        loss = self.loss(output, 1.2)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def captured(self):
        """A graph of its step."""
        import torch

        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                self.step()
        torch.cuda.synchronize()
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.step()
        return graph


def _timed(work: Callable[[int], object], trials: int) -> float:
    """Seconds of one trial's step."""
    import torch

    work(WARM_UP)
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        work(STEPS)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begun) / STEPS / trials)
    return statistics.median(times)


def _eager(student: str, count: int) -> float:
    import torch

    trials = [_Trial(student, seed) for seed in range(count)]

    def work(steps: int) -> None:
        for _ in range(steps):
            for one in trials:
                with torch.cuda.stream(one.stream):
                    one.step()

    return _timed(work, count)


def _threads(student: str) -> float:
    import torch

    trials = [_Trial(student, seed) for seed in range(TOGETHER)]

    def alone(one: _Trial, steps: int) -> None:
        with torch.cuda.stream(one.stream):
            for _ in range(steps):
                one.step()

    def work(steps: int) -> None:
        threads = [threading.Thread(target=alone, args=(one, steps)) for one in trials]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return _timed(work, TOGETHER)


def _graphs(student: str, count: int) -> float:
    import torch

    trials = [_Trial(student, seed, capturable=True) for seed in range(count)]
    graphs = [one.captured() for one in trials]

    def work(steps: int) -> None:
        for _ in range(steps):
            for one, graph in zip(trials, graphs, strict=True):
                with torch.cuda.stream(one.stream):
                    graph.replay()

    return _timed(work, count)


def _vectorised(student: str) -> float:
    import copy

    import torch
    from torch.func import functional_call, stack_module_state, vmap

    trials = [_Trial(student, seed) for seed in range(TOGETHER)]
    parameters, buffers = stack_module_state([one.student for one in trials])
    parameters = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    base, first = copy.deepcopy(trials[0].student), trials[0]
    optimizer = torch.optim.AdamW(parameters.values(), 1e-4, fused=True)
    exponents = torch.linspace(0.8, 2.0, TOGETHER, device="cuda")

    def losses(weights, state, eps):
        return first.loss(functional_call(base, (weights, state), (first.images,)), eps)

    def work(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                found = vmap(losses, randomness="different")(parameters, buffers, exponents)
            optimizer.zero_grad()
            found.sum().backward()
            optimizer.step()

    return _timed(work, TOGETHER)


def _processes(student: str) -> float:
    root = Path(__file__).resolve().parents[2]
    code = f"from tests.benchmarks.packing import process; process({student!r})"
    command = [sys.executable, "-c", code]
    started = [
        subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(TOGETHER)
    ]
    for one in started:
        one.stdout.readline()  # it is ready
    for one in started:
        one.stdin.write("go\n")
        one.stdin.flush()
    return max(float(one.communicate()[0]) for one in started) / TOGETHER


def process(student: str) -> None:
    """One of the processes: says that it is ready, waits, and prints the seconds of its step."""
    import torch

    torch.set_num_threads(1)
    trial = _Trial(student, 0)
    for _ in range(WARM_UP):
        trial.step()
    torch.cuda.synchronize()
    print("ready", flush=True)
    sys.stdin.readline()
    begun = time.perf_counter()
    for _ in range(STEPS * ROUNDS):
        trial.step()
    torch.cuda.synchronize()
    print((time.perf_counter() - begun) / STEPS / ROUNDS, flush=True)
