"""Weights for built models: from a checkpoint's file, or timm's own from the Hugging Face hub; checked to fit."""

import contextlib
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants as hub
import safetensors.torch
import timm
import torch
import torch.nn as nn
from torch import Tensor

from trainables import HUB_TIMEOUT
from trainables.errors import InputError, one_line

WRAPPERS = ("state_dict_ema", "state_dict", "model")  # keys under which training scripts keep the weights


def load_weights(model: nn.Module, path: str | Path, field: str) -> None:
    """Loads a checkpoint that fits the model exactly.

    Takes .safetensors and torch files of tensors (nothing else is unpickled), bare or as training scripts wrap them,
    averaged weights first. Names of older timm versions are translated by timm's own filter of the model.

    Raises:
        InputError: the file is missing, unreadable, of another architecture or of another number of classes. The
            message names `field` ("student" or "teacher").
    """
    where = f"{field}_weights={path}"
    state, own = _read(Path(path), where), model.state_dict()
    if state.keys() != own.keys():
        state = _renamed(state, model)
    differing = [key for key in own if key in state and state[key].shape != own[key].shape]
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    if differing and state.keys() == own.keys() and heads and all(key.startswith(heads) for key in differing):
        key = differing[0]
        classes = f"its classifier has {len(state[key])} classes and the data has {len(own[key])}"
        raise InputError(f"{where}: {classes}; give a checkpoint fitted to this data")
    problems = [f"{key} is {list(state[key].shape)} and should be {list(own[key].shape)}" for key in differing]
    problems += [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is unknown" for key in state if key not in own]
    if problems:
        shown = ", ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
        name = model.pretrained_cfg.get("architecture")
        raise InputError(f"{where}: does not fit {field} {name}: {shown}; give its own checkpoint, or change {field}")
    model.load_state_dict(state)


def pretrained(name: str, create: Callable[[], nn.Module], field: str) -> nn.Module:
    """What `create` builds with timm's weights, from the Hugging Face hub or its cache.

    Args:
        name: the model's name in timm.
        create: builds the model with its weights.
        field: the name in error messages, "student" or "teacher".

    Raises:
        InputError: timm has no weights for it, or they cannot be had; never a model with random weights instead.
    """
    other = "scratch" if field == "student" else "fit"
    fix = f"give {field}_weights=PATH with {field}_source=checkpoint, or {field}_source={other}"
    if not timm.get_pretrained_cfg(name).has_weights:
        raise InputError(f"{field}={name}: timm has no pretrained weights for it; {fix}")
    try:
        with _hub_offline_if_unreachable():
            return create()
    except Exception as error:  # network, disk, cache, a file that does not fit: none may end in random weights
        raise InputError(f"{field}={name}: its pretrained weights cannot be had ({one_line(error)}); {fix}") from error


@contextlib.contextmanager
def _hub_offline_if_unreachable() -> Iterator[None]:
    """Without a network the hub's client would retry for most of a minute before it looks into its cache."""
    before = hub.HF_HUB_OFFLINE
    try:
        urllib.request.urlopen(urllib.request.Request(hub.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # an answer, so it is there
    except OSError:
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _read(path: Path, where: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{where}: no such file; give a checkpoint's path")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format, and each way to be broken, has its own exception
        raise InputError(f"{where}: unreadable ({one_line(error)}); give .safetensors or a torch state_dict") from error
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{where}: holds no state_dict; save model.state_dict()")
    # DistributedDataParallel and torch.compile put these before the names
    return {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in state.items()}


def _renamed(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state under today's names, where timm's filter only renames: a resampled tensor would hide a misfit."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", lambda state, _: state)
    try:
        renamed = translate(dict(state), model)
    except Exception:  # filters trip over other architectures; the caller then reports what differs
        return state
    shapes = (Counter(tuple(value.shape) for value in tensors.values()) for tensors in (renamed, state))
    return state if next(shapes) - next(shapes) else renamed
