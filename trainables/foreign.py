"""Models that are not timm's: built by a factory given as an import path, `package.module:factory`."""

import difflib
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn as nn
from torch import Tensor

from trainables.errors import InputError, one_line
from trainables.tapped import Tapped, make_tapped
from trainables.trace import probe

PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
SETTERS = {"img_size": "img_size", "drop_rate": "drop", "drop_path_rate": "drop_path"}  # timm's arguments, our fields
INTERFACE = ("forward_intermediates", "forward_head", "feature_info", "num_features", "pretrained_cfg")  # timm's


def is_import_path(name: str) -> bool:
    """Whether a model's name is meant as an import path."""
    return ":" in name


def source_hash(name: str, field: str) -> str | None:
    """SHA-256 of the module's file that an import path names, as an edited one makes another model; None without one.

    Raises:
        InputError: it cannot be imported.
    """
    _factory(name, field)
    file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def build_foreign(
    name: str,
    *,
    num_classes: int,
    img_size: int,
    kwargs: dict[str, Any],
    drop: float | None,
    drop_path: float | None,
    field: str,
    modules: list[str] | None,
) -> nn.Module:
    """Calls the factory as `factory(num_classes=..., **kwargs)` and makes what it gives speak timm's interface.

    `img_size`, `drop_rate` and `drop_path_rate` are given to factories that have arguments of these names. A model that
    speaks timm's interface already is taken as it is; others are tapped by hooks, see `make_tapped`.

    Args:
        name: `package.module:factory`; the factory gives an `nn.Module`, [B, 3, S, S] to [B, num_classes].
        modules: the features' modules by name, None for a choice by rule.
        num_classes, img_size, kwargs, drop, drop_path, field: as for `build_model`.

    Raises:
        InputError: the factory cannot be imported or called so, or its model does not fit the data or the size or
            cannot be tapped.
    """
    factory = _factory(name, field)
    arguments = _arguments(factory, name, num_classes, img_size, kwargs, drop, drop_path, field)
    try:
        model = factory(**arguments)
    except Exception as error:  # the user's code
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InputError(
            f"{field}={name}: called with {given} it fails ({one_line(error)}); change {field}_kwargs"
        ) from error
    _check_kind(model, name, field)
    try:
        if all(hasattr(model, part) for part in INTERFACE):
            logits, _ = probe(model, img_size)
        else:
            logits = make_tapped(model, name, num_classes, img_size, modules, field)
    except InputError:
        raise
    except Exception as error:  # a model may fail at a size in any way it likes
        raise InputError(
            f"img_size={img_size}: {field} {name} cannot take it ({one_line(error)}); try another size, or give its "
            f"factory's own argument for it in {field}_kwargs"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        what = f"of shape {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(
            f"{field}={name}: for 2 images its output is {what} and should be [2, {num_classes}], the logits; its "
            "factory must heed num_classes"
        )
    return model


def import_callable(name: str, field: str) -> Callable:
    """What an import path, `package.module:attribute`, names in the user's code.

    Args:
        field: whose value it is, for the error message.

    Raises:
        InputError: the module cannot be imported, or has no such callable.
    """
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # the user's code
        raise InputError(
            f"{field}={name}: {path} cannot be imported ({one_line(error)}); it must be installed, in the current "
            "folder or on PYTHONPATH"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        callables = [key for key, value in vars(module).items() if callable(value)]
        near = difflib.get_close_matches(attribute, callables)
        fix = f"did you mean {', '.join(near)}?" if near else "give a function or class of it"
        raise InputError(f"{field}={name}: {path} has no callable '{attribute}'; {fix}")
    return found


def _factory(name: str, field: str) -> Callable[..., nn.Module]:
    if not PATH.fullmatch(name):
        raise InputError(f"{field}={name}: a model that is not timm's is given as package.module:factory")
    return import_callable(name, field)


def _arguments(factory, name, num_classes, img_size, kwargs, drop, drop_path, field) -> dict[str, Any]:
    """The call's arguments: what the factory names of timm's is set by the fields for it."""
    own = {"img_size": img_size, "drop_rate": drop, "drop_path_rate": drop_path}
    accepted, problems = _named_parameters(factory), []
    for key, setter in {"num_classes": "the data", **SETTERS}.items():
        if key in kwargs and (key == "num_classes" or key in accepted):
            problems.append(f"{field}_kwargs: {key}={kwargs[key]!r} cannot be given here; {setter} sets it")
    for key in ("drop_rate", "drop_path_rate"):
        if own[key] and key not in accepted:
            problems.append(
                f"{SETTERS[key]}={own[key]!r}: the factory of {field} {name} has no argument {key}; leave it out, or "
                f"give the factory's own argument in {field}_kwargs"
            )
    if problems:
        raise InputError(problems)
    given = {key: value for key, value in own.items() if key in accepted and value is not None}
    return {"num_classes": num_classes, **given, **kwargs}


def _named_parameters(factory: Callable) -> set[str]:
    try:
        return set(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # built without Python
        return set()


def _check_kind(model: Any, name: str, field: str) -> None:
    problem = None
    if not isinstance(model, nn.Module):
        problem = f"gives a {type(model).__name__}; it must give a torch.nn.Module"
    elif isinstance(model, Tapped):
        problem = "gives the same model again; it must build a new one in each call"
    elif next(model.parameters(), None) is None:
        problem = "gives a model without parameters; there is nothing to train"
    if problem:
        raise InputError(f"{field}={name}: the factory {problem}")
