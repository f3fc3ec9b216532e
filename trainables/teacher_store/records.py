"""How one answer of the teacher is kept: all of it, or its largest logits and what the others weigh together."""

import math

import numpy as np
import torch
from torch import Tensor

from trainables.errors import InputError

Fields = dict[str, Tensor]  # of records: by name, [..., n] or [...]
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)  # at which the error of the largest logits is told


class Whole:
    """Every value, rounded to the dtype and kept within its range.

    Args:
        width: values an answer: C of logits, D of an embedding.
        dtype: float16 or float32.

    Attributes:
        record: the NumPy type of one answer.
    """

    def __init__(self, width: int, dtype: str):
        self.dtype = getattr(torch, dtype)
        self.record = np.dtype([("values", np.dtype(dtype).newbyteorder("<"), (width,))])

    def encode(self, rows: Tensor) -> Fields:
        """Rows [B, W] to a record's fields, on the same device."""
        return {"values": _rounded(rows, self.dtype)}

    def decode(self, fields: Fields) -> Tensor:
        """A record's fields to rows [B, W], float32."""
        return fields["values"].float()

    def error(self, rows: Tensor, kept: Tensor) -> Tensor:
        """Nothing is left out: zeros, as `TopK.error`."""
        return rows.new_zeros(len(TEMPERATURES), dtype=torch.float32)


class TopK:
    """The largest logits, and the logarithm of the summed exponentials of the others, which share that mass evenly.

    At temperature 1 the kept probabilities are exact, as in FKD's marginal smoothing (Shen and Xing, ECCV 2022); at
    others the mass of the rest is approximate, and `error` tells by how much.

    Args:
        classes: C.
        count: how many logits are kept, fewer than C.
        dtype: of the kept logits, float16 or float32.

    Raises:
        InputError: there are no more classes than are kept.
    """

    def __init__(self, classes: int, count: int, dtype: str):
        if count >= classes:
            raise InputError(f"teacher_store: topk:{count} keeps all of {classes} classes; give fewer, or full")
        self.classes, self.count, self.dtype = classes, count, getattr(torch, dtype)
        self.record = np.dtype(
            [
                ("values", np.dtype(dtype).newbyteorder("<"), (count,)),
                ("indices", "<u2" if classes <= 2**16 else "<u4", (count,)),
                ("rest", "<f4"),
            ]
        )

    def encode(self, rows: Tensor) -> Fields:
        """Logits [B, C] to a record's fields, on the same device."""
        rows = rows.float()
        values, indices = rows.topk(self.count, dim=1)
        rest = rows.scatter(1, indices, -math.inf).logsumexp(dim=1)
        return {"values": _rounded(values, self.dtype), "indices": indices, "rest": rest}

    def decode(self, fields: Fields) -> Tensor:
        """A record's fields to logits [B, C], float32: those kept in their places, one and the same for all others."""
        each = fields["rest"].float() - math.log(self.classes - self.count)
        rows = each[:, None].repeat(1, self.classes)
        return rows.scatter_(1, fields["indices"].long(), fields["values"].float())

    def error(self, rows: Tensor, kept: Tensor) -> Tensor:
        """The mean Kullback-Leibler divergence of what is kept from the logits [B, C], at each of `TEMPERATURES`."""
        found = []
        for temperature in TEMPERATURES:
            true, told = ((one.float() / temperature).log_softmax(1) for one in (rows, kept))
            found.append((true.exp() * (true - told)).sum(1).mean())
        return torch.stack(found)


Form = Whole | TopK


def pack(form: Form, fields: Fields) -> np.ndarray:
    """Fields of any leading shape, on any device, as an array of records of that shape."""
    found = np.empty(fields["values"].shape[:-1], dtype=form.record)
    for name in form.record.names:
        found[name] = fields[name].cpu().numpy()
    return found


def unpack(records: np.ndarray, slots: np.ndarray, pinned: bool = False) -> Fields:
    """Records [steps, B] of some places of each batch as fields [steps, len(slots), ...] on the CPU.

    Args:
        pinned: in memory from which a GPU copies beside its work.
    """
    fields = {}
    for name in records.dtype.names:
        column = records[name][:, slots]  # a copy
        kind = column.dtype.newbyteorder("=") if column.dtype.kind == "f" else np.int64  # torch indexes by these
        tensor = torch.from_numpy(column.astype(kind, copy=False))
        fields[name] = tensor.pin_memory() if pinned else tensor
    return fields


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    most = torch.finfo(dtype).max  # a larger logit would become infinite, and the loss not a number
    return values.float().clamp(-most, most).to(dtype)
