"""What does a training step cost whose teacher's answers are read from a warm store?

Four kinds of step of one and the same student with projectors at all four stages, on the same batches:

- `warm`: ours, the answers read from a store on this machine's disk.
- `computed`: ours, the teacher asked in every step.
- `plain`: a loop in the official implementation's manner: the teacher in every step, softmax and logarithm apart, the
  loss of each stage by itself.
- `limit`: the student and its projectors trained with cross-entropy alone, without any teacher.

Each is forward, loss, backward and AdamW; the batches lie ready, so that augmentation is in none of them. Rounds are
interleaved, their order rotates, and a figure is the median of the rounds' ratios. `read_share` is the part of a warm
step in which logits are read, checked and brought to the device. All kinds have the recipe's other options as they are
by default on this device (mixed precision, memory order, fused optimizer), the official loop too, which has them not;
but for the replayed graph, which `plain` is without.

On a GPU the sizes are the paper's: 224 pixels, batches of 128, bfloat16; on a CPU they are small. `fed_over_ready`, on
a GPU, is what epochs take whose batches come from the loader's processes over epochs whose batches lie ready: 1 where
no step waits for data.
"""

import statistics
import tempfile
import time
from pathlib import Path

PAIRS = {  # teacher, student, and what is built for the CPU's small images
    "swin_t_resnet18": ("swin_tiny_patch4_window7_224", "resnet18"),
    "vit_s_resmlp_s12": ("vit_small_patch16_224", "resmlp_12_224"),
    "vit_b_mixer_b16": ("vit_base_patch16_224", "mixer_b16_224"),
}
ON_GPU = {"size": 224, "batch": 128, "classes": 1000, "steps": 16, "pairs": tuple(PAIRS), "loader_workers": 15,
          "together": 4}  # fmt: skip
ON_CPU = {"size": 96, "batch": 8, "classes": 100, "steps": 8, "pairs": tuple(PAIRS)[:2], "loader_workers": 0,
          "together": 1}  # fmt: skip
ROUNDS, WARM_UP = 25, 3
FED_ROUNDS, FED_EPOCHS = 3, 5
KINDS = ("warm", "computed", "plain", "limit")


def measure() -> dict[str, float]:
    """Times the steps of each pair."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    plan = ON_GPU if device.type == "cuda" else ON_CPU
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, one thread"
    print(f"{where}: {plan['size']} pixels, batches of {plan['batch']}, {plan['classes']} classes")
    print("pair                   warm s  computed     plain     limit  warm/limit  warm/plain  read share")
    figures: dict[str, float] = {}
    for pair in plan["pairs"]:
        found = _pair(pair, plan, device)
        figures |= {f"{pair}_{name}": value for name, value in found.items()}
    worst = max(figures[f"{pair}_warm_over_limit"] for pair in plan["pairs"])
    main = {
        name: figures[f"swin_t_resnet18_{name}"] for name in ("warm_over_plain", "computed_over_plain", "read_share")
    }
    return {"warm_over_limit": worst, **main, **figures}


def _pair(name: str, plan: dict, device) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(*PAIRS[name], plan, device, Path(folder))
        taken = {kind: [] for kind in KINDS}
        for number in range(WARM_UP + ROUNDS):
            if number == WARM_UP:
                bench.read_s.clear()
            shift = number % len(KINDS)
            for kind in KINDS[shift:] + KINDS[:shift]:
                taken[kind].append(bench.seconds(kind))
        assert bench.answers.figures()["stored"] == 1.0, "a warm step reads"
        reading = sum(bench.read_s)
        fed = _fed_over_ready(bench) if device.type == "cuda" else {}
        bench.close()
    taken = {kind: times[WARM_UP:] for kind, times in taken.items()}

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))

    middle = {kind: statistics.median(times) for kind, times in taken.items()}
    found = {
        "warm_over_limit": ratio("warm", "limit"),
        "warm_over_plain": ratio("warm", "plain"),
        "computed_over_plain": ratio("computed", "plain"),
        "read_share": reading / sum(taken["warm"]) / plan["together"],
        **fed,
    }
    row = "".join(f"{middle[kind]:10.4f}" for kind in KINDS)
    print(
        f"{name:<19}{row}{found['warm_over_limit']:12.3f}{found['warm_over_plain']:12.3f}{found['read_share']:12.4f}",
        flush=True,
    )
    return found


def _fed_over_ready(bench: "Bench") -> dict[str, float]:
    """What epochs one after another cost whose batches come from the loader's processes, over ready ones."""

    def batches(epoch: int):
        return bench.stream.epoch(epoch) if fed else bench.batches

    ratios = []
    for number in range(FED_ROUNDS):
        took = {}
        for fed in (True, False):
            epochs = range(1 + number * FED_EPOCHS, 1 + (number + 1) * FED_EPOCHS)
            took[fed] = sum(bench.epoch_seconds(batches(epoch)) for epoch in epochs)
        ratios.append(took[True] / took[False])
    return {"fed_over_ready": statistics.median(ratios)}


class Bench:
    """One pair's models, batches and store."""

    def __init__(self, teacher: str, student: str, plan: dict, device, folder: Path, **fields):
        import torch

        from trainables.acceleration import accelerate, precision
        from trainables.assets import Assets
        from trainables.build import normalization
        from trainables.checkpoint import save_weights
        from trainables.config import TrialConfig
        from trainables.context import RunContext
        from trainables.data import synthetic_splits
        from trainables.distillation import make_taught, needs_of
        from trainables.loop import build_student
        from trainables.optim import make_optimizer
        from trainables.step import TrainStep
        from trainables.stream import train_loader
        from trainables.teacher import build_teacher

        self.device, self.plan = device, plan
        classes, batch, steps = plan["classes"], plan["batch"], plan["steps"]
        self.config = config = TrialConfig(
            data="synthetic", img_size=plan["size"], teacher=teacher, teacher_source="fit", student=student,
            epochs=1 + FED_ROUNDS * FED_EPOCHS,
            batch_size=batch, eps=1.2, holdout=0.5, max_images=batch * steps, loader_workers=plan["loader_workers"],
            **fields,
        ).on(device.type)  # fmt: skip
        torch.manual_seed(0)
        splits = synthetic_splits(config, classes, images_per_class=max(4, 4 * batch * steps // classes))
        assets = Assets(device, folder / "teacher.safetensors", str(folder / "store"))
        save_weights(build_teacher(config, classes), assets.teacher_weights)
        assets.splits = lambda _: splits  # random images in place of a data set
        self.student = build_student(config, classes).to(device)
        mean, std = normalization(self.student.model)
        needs = needs_of(config)
        self.teacher = assets.teacher(config, mean, std, needs)
        targets = torch.from_numpy(splits.train.targets)
        self.taught = make_taught(self.student, config, lambda: self.teacher, targets).to(device).train()
        accelerate(self.taught, config)
        self.optimizer = make_optimizer(self.taught, config)
        self.train = TrainStep(self.taught, self.optimizer, config, device, print)
        self.train_alone = TrainStep(_alone(self.student), self.optimizer, config, device, print)
        stream = self.stream = train_loader(
            splits.train, config, mean=mean, std=std, rank=0, world_size=1, seed=0, num_classes=classes,
            device=device,
        )  # fmt: skip
        self.batches = list(stream.epoch(0))
        context = RunContext(folder / "trial", lambda _: True, device=device)
        self.answers = assets.answers(config, mean, std, needs, lambda: self.teacher, None, stream, context)
        for place, (images, *_) in enumerate(self.batches):  # the trial that comes first
            with precision(self.config, self.device):
                self.answers(images, place)
        self.answers.settle()
        self.answers.epoch(0)  # and those that come later
        self._at = dict.fromkeys(KINDS, 0)  # steps made
        self.read_s: list[float] = []  # by warm step

    def seconds(self, kind: str) -> float:
        """The time of one step, the mean of as many as the plan lets run before the device is waited for."""
        self._wait()
        begun = time.perf_counter()
        for _ in range(self.plan["together"]):
            self._step(kind, self._at[kind] % len(self.batches), *self.batches[self._at[kind] % len(self.batches)])
            self._at[kind] += 1
        self._wait()
        return (time.perf_counter() - begun) / self.plan["together"]

    def epoch_seconds(self, batches) -> float:
        """The time of an epoch of warm steps."""
        self._wait()
        begun = time.perf_counter()
        for place, batch in enumerate(batches):
            self._step("warm", place, *batch)
        self._wait()
        return time.perf_counter() - begun

    def _step(self, kind: str, place: int, images, target, index) -> None:
        if kind == "plain":
            self._plain(images, target)
        elif kind == "limit":
            self.train_alone(images, target, None, index, 0, 0)
        else:
            from trainables.acceleration import precision

            begun = time.perf_counter()
            with precision(self.config, self.device):
                answer = self.answers(images, place) if kind == "warm" else self.teacher(images)
            if kind == "warm":
                self.read_s.append(time.perf_counter() - begun)
            self.train(images, target, answer, index, 0, 0)

    def close(self) -> None:
        """Ends the store's threads and the loader's processes."""
        self.answers.close()
        self.stream.close()

    def _plain(self, images, target) -> None:
        import torch
        import torch.nn.functional as F

        from trainables.acceleration import precision

        def enhanced(logits, eps=1.2, temperature=1.0):
            taught = F.softmax(teacher / temperature, dim=1)
            learned = F.softmax(logits / temperature, dim=1)
            mask = F.one_hot(target, logits.shape[1])
            return -(((taught + mask) ** eps - mask) * torch.log(learned)).sum(1).mean()

        with precision(self.config, self.device):
            with torch.no_grad():
                teacher = self.teacher(images).logits
            output = self.student(images)
            stages = sum(enhanced(logits) for logits in output.stage_logits.values())
            loss = F.cross_entropy(output.logits, target) + enhanced(output.logits) + stages
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _alone(student):
    """The student and its projectors with cross-entropy and no teacher."""
    import torch
    import torch.nn.functional as F

    class Alone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.student = student

        def forward(self, images, target, *_):
            output = self.student(images)
            return {
                "loss": sum(
                    F.cross_entropy(logits, target) for logits in (output.logits, *output.stage_logits.values())
                )
            }

    return Alone()
