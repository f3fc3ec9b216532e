"""What does a whole study cost, over the same trials one after another in a plain loop?

16 configurations of OFA-KD for Swin-T teaching ResNet-18, drawn at random, are trained for equal epochs: by
`search/run.py` on all cores, without early stopping, with all that belongs to a study (Ray's start, the teacher's
check, tracking, report); then by a loop in the official implementation's manner, in one process with all cores, the
teacher in every step and none of the recipe's options for speed; and once more by `search/run.py` with early stopping.
Images are digits, enlarged; the teacher is a Swin-T with random weights whose last layer is fitted to the digits in
closed form, for what it costs is what a trained one costs. Sizes are small: on a CPU a step takes half a second.
"""

import os
import tempfile
import time
from pathlib import Path

TEACHER, STUDENT = "swin_tiny_patch4_window7_224", "resnet18"
SIZE, BATCH, IMAGES, EPOCHS, TRIALS = 96, 8, 160, 5, 16
HOLDOUT = 0.012  # of all digits: 20 images beside the 160 that are trained on


def measure() -> dict[str, float]:
    """Runs all three."""
    from tests.benchmarks.ours import run_study

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        weights = _teacher(folder)
        flags = {"trials": TRIALS, "epochs": EPOCHS, "seed": 0}
        fields = {
            "teacher": TEACHER, "teacher_source": "checkpoint", "teacher_weights": weights, "teacher_kwargs": "{}",
            "student": STUDENT, "student_kwargs": "{}", "img_size": SIZE, "batch_size": BATCH, "max_images": IMAGES,
            "holdout": HOLDOUT, "labels_per_class": "null", "finalists": 0, "baselines": "[]", "sampler": "random",
            "lr": 0.001,
        }  # fmt: skip
        ours, records = run_study(folder / "ours", "vit_to_cnn.py", flags, fields | {"scheduler": "none"})
        print(f"  study: {ours:.1f} s", flush=True)
        plain = _plain([record["config"] for record in records], weights)
        print(f"  plain loop: {plain:.1f} s", flush=True)
        stopping = {"scheduler": "asha", "grace_epochs": 1}
        stopped, fewer = run_study(folder / "stopped", "vit_to_cnn.py", flags, fields | stopping)
        epochs = sum(len(record["history"]) for record in fewer)
        print(f"  study with early stopping: {stopped:.1f} s, {epochs} of {TRIALS * EPOCHS} epochs", flush=True)
    return {
        "over_plain": ours / plain,
        "stopped_over_plain": stopped / plain,
        "study_s": ours,
        "plain_s": plain,
        "stopped_s": stopped,
    }


def _teacher(folder: Path) -> Path:
    """The teacher's weights: random but for the last layer, by ridge regression on the pooled features."""
    import torch

    from trainables.build import build_model, normalization
    from trainables.checkpoint import save_weights
    from trainables.config import DataFields
    from trainables.data import load_splits
    from trainables.stream import eval_loader

    torch.manual_seed(0)
    splits = load_splits(DataFields(data="digits", img_size=SIZE, max_images=500))
    model = build_model(TEACHER, num_classes=10, img_size=SIZE, field="teacher").eval()
    mean, std = normalization(model)
    features, classes = [], []
    with torch.no_grad():
        for images, target in eval_loader(splits.teacher_train, SIZE, mean=mean, std=std, batch_size=50):
            features.append(model.forward_head(model.forward_features(images), pre_logits=True))
            classes.append(target)
        seen, wanted = torch.cat(features).double(), torch.nn.functional.one_hot(torch.cat(classes), 10).double()
        middle = seen.mean(0)
        centred = seen - middle
        ridge = 1e-3 * centred.pow(2).sum() / centred.shape[1] * torch.eye(centred.shape[1], dtype=torch.float64)
        slope = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (wanted - 0.1)) * 10  # logits of some size
        model.get_classifier().weight.copy_(slope.T)
        model.get_classifier().bias.copy_(-middle @ slope)
    save_weights(model, folder / "teacher.safetensors")
    return folder / "teacher.safetensors"


def _plain(configs: list[dict], weights: Path) -> float:
    """Seconds for all configurations, their models' building and judging included."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())
    begun = time.perf_counter()
    for config in configs:
        _train(config, weights)
    torch.set_num_threads(threads)
    return time.perf_counter() - begun


def _train(fields: dict, weights: Path) -> None:
    import torch
    import torch.nn.functional as F

    from trainables.build import normalization
    from trainables.config import BY_DEVICE, TrialConfig
    from trainables.data import load_splits
    from trainables.loop import build_student
    from trainables.optim import make_optimizer
    from trainables.stream import eval_loader, train_loader
    from trainables.teacher import Teacher, build_teacher

    config = TrialConfig(**fields | dict.fromkeys(BY_DEVICE["cpu"], False))
    splits = load_splits(config)
    torch.manual_seed(config.seed)
    student = build_student(config, 10).train()
    mean, std = normalization(student.model)
    teacher = Teacher(build_teacher(config, 10, weights), mean, std)
    optimizer = make_optimizer(_Alone(student), config)
    stream = train_loader(splits.train, config, mean=mean, std=std, rank=0, world_size=1, seed=0, num_classes=10)
    holdout = eval_loader(splits.holdout, SIZE, mean=mean, std=std, batch_size=256)
    eps = config.eps if isinstance(config.eps, list) else [config.eps] * (len(config.stages) + 1)

    def enhanced(logits, answer, hard, eps):
        taught, learned = F.softmax(answer / config.temperature, 1), F.softmax(logits / config.temperature, 1)
        return -(((taught + hard) ** eps - hard) * torch.log(learned)).sum(1).mean()

    for epoch in range(config.epochs):
        for images, target, _ in stream.epoch(epoch):
            answer, output = teacher(images).logits, student(images)
            hard = F.one_hot(target if target.ndim == 1 else target.argmax(1), 10)
            loss = config.gt_loss_weight * F.cross_entropy(output.logits, target)
            loss = loss + config.kd_loss_weight * enhanced(output.logits, answer, hard, eps[-1])
            for value, logits in zip(eps, output.stage_logits.values(), strict=False):
                loss = loss + config.ofa_loss_weight * enhanced(logits, answer, hard, value)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        student.eval()
        with torch.no_grad():
            for images, _ in holdout:
                student.model(images)
        student.train()


class _Alone:
    """What `make_optimizer` asks of a student in training that has no modules besides."""

    def __init__(self, student):
        import torch

        self.student, self.extras = student, torch.nn.ModuleDict()
