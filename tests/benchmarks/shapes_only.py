"""The meta device made fast: the same operation on the same shapes is worked out once."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

SHAPES: dict = {}  # operation and arguments to the outputs' shapes, strides and types


class ShapesOnly(TorchDispatchMode):
    """A context in which operations on meta tensors give outputs of remembered shape.

    On the meta device an operation only says what its outputs look like, and torch works that out in Python, at about a
    millisecond for a layer norm; a deep network asks for the same a hundred times. Views and whatever touches real
    tensors go to torch.
    """

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat, structure = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]
        schema = operation._schema
        if not tensors or not all(tensor.is_meta for tensor in tensors):
            return operation(*args, **kwargs)
        if schema.is_mutable:
            in_place = schema.name.endswith("_") and torch.Tag.inplace_view not in operation.tags
            return args[0] if in_place else operation(*args, **kwargs)
        if any(returned.alias_info for returned in schema.returns):
            return operation(*args, **kwargs)
        key = (operation, structure, *((_look(leaf) if isinstance(leaf, torch.Tensor) else leaf) for leaf in flat))
        try:
            if key in SHAPES:
                return tree_map(lambda look: look.tensor() if isinstance(look, _Look) else look, SHAPES[key])
        except TypeError:  # an argument that cannot be looked up
            return operation(*args, **kwargs)
        outputs = operation(*args, **kwargs)
        SHAPES[key] = tree_map(lambda leaf: _Look(leaf) if isinstance(leaf, torch.Tensor) else leaf, outputs)
        return outputs


def _look(tensor: torch.Tensor) -> tuple:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


class _Look:
    """How a tensor looks."""

    def __init__(self, tensor: torch.Tensor):
        self.shape, self.stride, self.dtype = _look(tensor)

    def tensor(self) -> torch.Tensor:
        """A meta tensor that looks so."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
