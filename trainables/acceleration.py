"""What makes a step faster and leaves what it computes alone, but for rounding."""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from trainables.config import TrialConfig

CONTAINERS = (nn.Sequential, nn.ModuleList)
COMPILED = 64  # forms of one class's blocks that a process keeps; PyTorch's own limit of 8 is less than ResNet-18 has
# The fields that decide a form
SHAPING = {"student", "student_kwargs", "img_size", "batch_size", "drop", "drop_path", "channels_last"}
SHAPING |= {"amp", "amp_dtype"}

_kept: dict[str, Counter[type]] = {}  # by what shapes the code, how many blocks of each class were compiled


def accelerate(module: nn.Module, config: TrialConfig) -> None:
    """Brings a model that trains into the form that `channels_last` and `torchcompile` ask for, in place.

    Its blocks are compiled one by one, as PyTorch advises where compiling takes longer than it saves: equal blocks
    share their code, and so do later trials of the process.
    Source: https://docs.pytorch.org/tutorials/recipes/regional_compilation.html
    """
    if config.channels_last:
        module.to(memory_format=torch.channels_last)
    if config.torchcompile:
        found = blocks(module)
        _make_room(str(config.model_dump(include=SHAPING)), Counter(map(type, found)))
        for block in found:
            block.compile(dynamic=False)


def _make_room(form: str, wanted: Counter[type]) -> None:
    """Forgets all compiled code where more would not fit: PyTorch would run further blocks as they are written, so that
    a trial's speed and rounding depended on those before it."""
    kept = sum(_kept.values(), Counter())
    if form not in _kept and any(kept[kind] + count > COMPILED for kind, count in wanted.items()):
        torch._dynamo.reset()
        _kept.clear()
    _kept[form] = wanted
    torch._dynamo.config.recompile_limit = max(COMPILED, *wanted.values())


def precision(config: TrialConfig, device: torch.device) -> AbstractContextManager:
    """The context in which both models' passes run: mixed precision, where the recipe asks for it."""
    return torch.autocast(device.type, dtype=getattr(torch, config.amp_dtype)) if config.amp else nullcontext()


def uncompiled(config: TrialConfig) -> AbstractContextManager:
    """A context in which compiled blocks run as they are written: for passes of other shapes, which are too few to
    compile anything for them."""
    return torch.compiler.set_stance("force_eager") if config.torchcompile else nullcontext()


def forget_compiled(module: nn.Module) -> None:
    """Has compiled blocks run as they are written from now on."""
    for block in module.modules():
        block._compiled_call_impl = None  # what `Module.compile` sets; there is no public way back


def blocks(module: nn.Module) -> list[nn.Module]:
    """The innermost modules with parts of their own that stand in a model's lists: its residual or attention blocks."""
    lists = (parent for parent in module.modules() if type(parent) in CONTAINERS)
    children = [child for one in lists for child in one if type(child) not in CONTAINERS]
    found = {child: None for child in children if list(child.children())}
    return [one for one in found if not any(part in found for part in one.modules() if part is not one)]
