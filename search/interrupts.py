"""Ctrl-C: the first one stops cleanly, the next one at once."""

import signal
import threading
from collections.abc import Callable


class Interrupts:
    """Takes SIGINT and SIGTERM while it is entered, in the main thread.

    Args:
        on_first: called when the first one came.
    """

    def __init__(self, on_first: Callable[[], None]):
        self._came, self._on_first = threading.Event(), on_first
        self._previous: dict[int, object] = {}

    def is_set(self) -> bool:
        """Whether one came."""
        return self._came.is_set()

    def __enter__(self):
        self._previous = {kind: signal.signal(kind, self._handle) for kind in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for kind, handler in self._previous.items():
            signal.signal(kind, handler)

    def _handle(self, number, frame) -> None:
        if self._came.is_set():
            raise KeyboardInterrupt
        self._came.set()
        self._on_first()
