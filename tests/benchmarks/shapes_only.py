"""The meta device made fast: the same operation on the same shapes is worked out once."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SHAPES: dict = {}  # operation and arguments to the outputs' shapes, strides and types


class ShapesOnly(TorchDispatchMode):
    """A context in which operations on meta tensors give outputs of remembered shape.

    On the meta device an operation only says what its outputs look like, and torch works that out in Python, at about a
    millisecond for a layer norm; a deep network asks for the same a hundred times. Views, and whatever touches real
    tensors, go to torch.
    """

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        kind = _KINDS.get(operation) or _KINDS.setdefault(operation, _kind(operation))
        if kind == "in place" and args[0].is_meta:
            return args[0]
        if kind != "functional":
            return operation(*args, **kwargs)
        try:
            key = (operation, _look(args), _look(tuple(kwargs.items())))
            if key not in SHAPES:
                SHAPES[key] = _look(outputs := operation(*args, **kwargs))
                return outputs
        except (TypeError, _RealTensor):  # arguments that cannot be looked up
            return operation(*args, **kwargs)
        return _outputs(SHAPES[key])


_KINDS: dict = {}


class _RealTensor(Exception):
    pass


class _Look(tuple):
    """A tensor's shape, stride and type."""


def _kind(operation) -> str:
    schema = operation._schema
    if schema.is_mutable:
        keeps_shape = schema.name.endswith("_") and torch.Tag.inplace_view not in operation.tags
        return "in place" if keeps_shape else "other"
    if any(returned.alias_info for returned in schema.returns):
        return "view"
    takes_tensors = any("Tensor" in str(argument.type) for argument in schema.arguments)
    return "functional" if takes_tensors else "factory"


def _look(value: Any) -> Any:
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _RealTensor
        return _Look((tuple(value.shape), value.stride(), value.dtype))
    return tuple(map(_look, value)) if isinstance(value, (list, tuple)) else value


def _outputs(look: Any) -> Any:
    if isinstance(look, _Look):
        return torch.empty_strided(look[0], look[1], dtype=look[2], device="meta")
    return tuple(map(_outputs, look)) if isinstance(look, tuple) else look
