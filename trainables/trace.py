"""What runs inside any model on one image: which modules give feature maps, in which layout, and which the logits."""

import contextlib
import difflib
import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn as nn
from torch import Tensor

from trainables.errors import InputError

Layout = Literal["NCHW", "NHWC", "NLC"]
PYRAMID = 3  # distinct resolutions from which a model counts as hierarchical
MOST_PREFIX_TOKENS = 16  # class and register tokens before those of the grid; with more it is no grid
BATCH = 2


@dataclass(frozen=True)
class Output:
    """The square feature map that a module gave in its last call.

    Attributes:
        module: its name in the model.
        kind: its class.
        weights: numbers in its parameters, those of modules inside included.
        taken: side of the map that it was given, None where it was given none.
        channels, side, layout: the map's.
    """

    module: str
    kind: type
    weights: int
    taken: int | None
    channels: int
    side: int
    layout: Layout


@dataclass(frozen=True)
class Trace:
    """A pass through a model.

    Attributes:
        logits: what the model gave.
        outputs: by module, in the order in which the modules ended.
        before_classifier: those that ended before the classifier.
        classifier: the last linear layer or 1x1 convolution with as many outputs as there are classes.
        width: channels that the classifier takes.
    """

    logits: Any
    outputs: dict[str, Output]
    before_classifier: list[Output]
    classifier: str | None
    width: int | None

    def features(self) -> list[Output]:
        """The outputs that make good stages, shallow to deep, by rule.

        Of a model with three or more resolutions: the last module with parameters at each of those that end in order,
        large to small, as a squeeze-and-excitation's 1x1 or the smaller grid of a reduced attention does not. Of others
        the blocks of the largest row of equal ones.
        """
        weighted = [output for output in self.before_classifier if output.weights]
        sides = [output.side for output in _ends(weighted)]
        smaller = dict(itertools.pairwise(sides))
        halving = [output for output in weighted if output.taken in smaller and output.side == smaller[output.taken]]
        inside = [(f"{output.module}.", output.taken) for output in halving]
        # what a halving block does to its input before it halves belongs to the next stage
        pyramid = _ends(
            [
                output
                for output in weighted
                if not any(output.side == side and output.module.startswith(prefix) for prefix, side in inside)
            ]
        )
        if len(pyramid) >= PYRAMID:
            return pyramid
        rows = defaultdict(list)
        for output in weighted:
            rows[output.module.rpartition(".")[0], output.kind, output.channels, output.side].append(output)
        blocks = max(rows.values(), key=lambda row: (len(row) > 1, sum(block.weights for block in row)), default=[])
        return blocks if len(blocks) > len(pyramid) else pyramid

    def named(self, modules: list[str], model: str) -> list[Output]:
        """The outputs of the named modules.

        Raises:
            InputError: no module of the name gives a feature map, or they run in another order.
        """
        problems = []
        for name in modules:
            if name not in self.outputs:
                near = difflib.get_close_matches(name, self.outputs) or [output.module for output in self.features()]
                problems.append(
                    f"taps: {model} has no module '{name}' that gives features; there are {', '.join(near)}"
                )
        if problems:
            raise InputError(problems)
        in_order = [name for name in self.outputs if name in modules]
        if in_order != modules:
            raise InputError(f"taps={','.join(modules)}: name each once, as they run: taps={','.join(in_order)}")
        return [self.outputs[name] for name in modules]


@contextlib.contextmanager
def dry_run(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients, on the device given; modes and random state are afterwards as they were."""
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield device
    finally:
        # LeViT and its like cache attention biases in eval mode, and only a call of train() drops them
        model.train()
        for module, mode in modes:
            module.training = mode


def probe(model: nn.Module, img_size: int) -> tuple[Tensor, list[Tensor]]:
    """Logits and all features, [B, C, H, W], of two black images, from a model with timm's interface.

    Leaves batch statistics, train mode and the random state as they were.
    """
    with dry_run(model) as device:
        final, features = model.forward_intermediates(torch.zeros(BATCH, 3, img_size, img_size, device=device))
        return model.forward_head(final), features


def trace(model: nn.Module, num_classes: int, img_size: int) -> Trace:
    """Runs a model on two black images of a side in pixels and looks at what its modules give."""
    recorder = _Recorder(num_classes, img_size)
    with dry_run(model) as device, contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(functools.partial(recorder.see, name)))
        logits = model(torch.zeros(BATCH, 3, img_size, img_size, device=device))
    return recorder.result(logits)


class _Recorder:
    """Collects what the modules give during a pass."""

    def __init__(self, num_classes: int, img_size: int):
        self.num_classes, self.img_size = num_classes, img_size
        self.outputs: dict[str, Output] = {}
        self.sides_taken: dict[str, int | None] = {}
        self.before_classifier: list[Output] | None = None
        self.classifier: str | None = None
        self.width: int | None = None
        self.layout: Layout = "NCHW"  # of the latest map whose shape shows it
        self.pooled = True  # whether 1x1 outputs come from pooling, not from a layer that ends there

    def see(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        """A forward hook, the module's name put before its arguments."""
        given, grid = self._grid(args), self._grid(output)
        taken = given[1] if given else None
        weights = sum(weight.numel() for weight in module.parameters())
        self.sides_taken[name] = taken
        self.outputs.pop(name, None)
        if grid:
            if taken and taken > grid[1] == 1 and weights and not any(module.children()):
                self.pooled = False
            self.outputs[name] = Output(name, type(module), weights, taken, *grid)
        inputs, outputs = _widths(module)
        if outputs == self.num_classes:
            self.classifier, self.width = name, inputs
            self.before_classifier = [kept for key, kept in self.outputs.items() if key != name]

    def result(self, logits: Any) -> Trace:
        """What was seen, after the pass."""
        before = list(self.outputs.values()) if self.before_classifier is None else self.before_classifier
        before = [output for output in before if output.side > 1 or not self.pooled]
        if self.classifier:  # a head's norm of the pooled map is no stage
            around = itertools.accumulate(self.classifier.split(".")[:-1], lambda outer, inner: f"{outer}.{inner}")
            heads = tuple(f"{name}." for name in around if self.sides_taken[name] == 1)
            before = [output for output in before if not output.module.startswith(heads)]
        return Trace(logits, self.outputs, before, self.classifier, self.width)

    def _grid(self, output: Any) -> tuple[int, int, Layout] | None:
        """Channels, side and layout of a feature map, None of anything else."""
        tensor = first_tensor(output)
        if tensor is None or tensor.ndim not in (3, 4) or len(tensor) != BATCH:
            return None
        _, a, b, *rest = tensor.shape
        if not rest:
            side = math.isqrt(a)
            found = (b, side, "NLC") if a - side**2 <= MOST_PREFIX_TOKENS else None
        elif a == b == rest[0]:
            found = (a, b, self.layout)
        elif a == b:
            found = (rest[0], a, "NHWC")
        else:
            found = (a, b, "NCHW") if b == rest[0] else None
        if found is None or not 0 < found[1] <= self.img_size:
            return None
        if rest:
            self.layout = found[2]
        return found


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor in a module's output, which may be a tuple, list or dict."""
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return next(filter(lambda tensor: tensor is not None, map(first_tensor, output)), None)
    return output if isinstance(output, Tensor) else None


def to_nchw(output: Any, layout: Layout) -> Tensor:
    """A module's output as [B, C, H, W]; of tokens the largest square is the grid, and those before it are dropped."""
    tensor = first_tensor(output)
    if layout == "NHWC":
        return tensor.permute(0, 3, 1, 2)
    if layout == "NLC":
        side = math.isqrt(tensor.shape[1])
        return tensor[:, tensor.shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))
    return tensor


def _ends(outputs: list[Output]) -> list[Output]:
    """The last output of each resolution, large to small, without resolutions that end before a larger one does."""
    ends: list[Output] = []
    for output in reversed(outputs):
        if not ends or output.side > ends[0].side:
            ends.insert(0, output)
    return ends


def _widths(module: nn.Module) -> tuple[int | None, int | None]:
    """Channels in and out of a linear layer or a 1x1 convolution."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
        return module.in_channels, module.out_channels
    return None, None
