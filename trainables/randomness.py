"""The process's random numbers, lent to one who needs a sequence of his own and given back as they were."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def own_random_numbers() -> Iterator[Callable[[int], None]]:
    """Lends the three global generators of the CPU, which timm draws from; gives a function that seeds them."""
    states = _states()

    def reseed(bits: int) -> None:
        random.seed(bits)
        np.random.seed(bits & 0xFFFFFFFF)
        torch.default_generator.manual_seed(bits)

    try:
        yield reseed
    finally:
        _set(states)


class RandomNumbers:
    """A sequence that goes on each time it is used, whatever draws in between.

    On a GPU the generator's state itself is exchanged, not its value: a CUDA graph reads the one that it was captured
    with, and of two graphs that are replayed side by side neither must move the other's.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.Generator.html (graphsafe_set_state)

    Args:
        device: the generators of the CPU, and of this device where it is a GPU.
    """

    def __init__(self, device: torch.device):
        self._own = None
        self._generator = self._own_on_device = None
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generator = torch.cuda.default_generators[index]
            self._own_on_device = self._generator.clone_state()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within this, all that draws goes on with this sequence; it begins as the process's own stands."""
        outside = _states()
        on_device = self._generator.graphsafe_get_state() if self._generator else None
        if self._own:
            _set(self._own)
        if self._generator:
            self._generator.graphsafe_set_state(self._own_on_device)
        try:
            yield
        finally:
            self._own = _states()
            _set(outside)
            if self._generator:
                self._generator.graphsafe_set_state(on_device)


def _states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.default_generator.get_state()


def _set(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.default_generator.set_state(states[2])
