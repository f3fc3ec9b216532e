"""What a student costs, and what the branches that teach it cost on top; the branches are for training only."""

import statistics
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainables.distillation import Taught
from trainables.trace import dry_run

MOST_PASSES, MOST_S = 31, 0.1  # of the timed forward passes


def costs(taught: Taught, img_size: int) -> dict[str, float]:
    """Parameters, and FLOPs of one image's forward pass (a multiplication and an addition are two).

    Returns:
        `cost/student_params`, `cost/student_flops`, `cost/latency_ms` (see `latency_ms`), and `cost/branch_params`,
        `cost/branch_flops` of the projectors and the distillers' own modules together (of the latter only linear
        layers, and convolutions as if they kept the feature's size).
    """
    student = taught.student
    image = torch.zeros(1, 3, img_size, img_size)
    with dry_run(student) as device:
        student_flops = _flops(student.model, image.to(device))
        branch_flops = sum(
            _flops(projector, torch.zeros(1, *student.feature_shapes[int(stage)], device=device))
            for stage, projector in student.projectors.items()
        )
    for name, module in taught.extras.named_modules():
        if isinstance(module, nn.Linear):
            branch_flops += 2 * module.weight.numel()
        elif isinstance(module, nn.Conv2d):  # on a stage's feature, where the name has one
            stages = [int(part) for part in name.split(".") if part.isdigit() and int(part) in student.feature_shapes]
            _, height, width = student.feature_shapes[stages[0]] if stages else (0, 1, 1)
            branch_flops += 2 * module.weight.numel() * height * width
    return {
        "cost/student_params": parameters(student.model),
        "cost/student_flops": student_flops,
        "cost/latency_ms": latency_ms(student.model, img_size),
        "cost/branch_params": parameters(student.projectors) + parameters(taught.extras),
        "cost/branch_flops": branch_flops,
    }


@torch.no_grad()
def latency_ms(model: nn.Module, img_size: int) -> float:
    """Milliseconds of one image's forward pass in evaluation mode on the model's device, the median of a few passes.

    A measurement on this machine as busy as it is; the first pass, which warms up, does not count.
    """
    device = next(model.parameters()).device
    image, was_training, times = torch.zeros(1, 3, img_size, img_size, device=device), model.training, []
    model.eval()
    begun = time.perf_counter()
    while len(times) < 4 or (len(times) < MOST_PASSES and time.perf_counter() - begun < MOST_S):
        started = time.perf_counter()
        model(image)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    model.train(was_training)
    return statistics.median(times[1:])


def parameters(module: nn.Module) -> int:
    """How many numbers a module trains."""
    return sum(weight.numel() for weight in module.parameters())


def _flops(module: nn.Module, inputs: torch.Tensor) -> int:
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see into PyTorch's fused attention layers
    try:
        with FlopCounterMode(display=False) as counter:
            module(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()
