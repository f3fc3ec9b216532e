"""Batches brought to a device while the one before is trained on."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Item = TypeVar("Item")


def on_device(
    loaded: Iterable[Item], bring: Callable[[int, Item], Tensors], bringing: torch.cuda.Stream | None
) -> Iterator[Tensors]:
    """Batches on a device; on a GPU the next one is made, on a stream of its own, while one is trained on.

    Args:
        loaded: batches in memory; pinned, or a GPU waits for their copies.
        bring: copies a batch, given its number from 0, to the device, and makes there of it what is wanted.
        bringing: the GPU's stream for that, always the same, since memory is kept by stream; None on a CPU.
    """
    if bringing is None:
        for number, batch in enumerate(loaded):
            yield bring(number, batch)
        return
    ahead = None

    def ready(batch: Tensors, brought: torch.cuda.Event) -> Tensors:
        training = torch.cuda.current_stream(bringing.device)
        training.wait_event(brought)
        for tensor in batch:
            tensor.record_stream(training)  # else its memory would be taken while it is still read
        return batch

    for number, batch in enumerate(loaded):
        with torch.cuda.stream(bringing):
            following = bring(number, batch), bringing.record_event()
        if ahead:
            yield ready(*ahead)
        ahead = following
    if ahead:
        yield ready(*ahead)
