"""What looks at something again and again while a study runs, in a thread of its own."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

log = logging.getLogger(__name__)


class Periodic(ABC):
    """Entered, it looks every so many seconds, until it is left; an error in a look is logged, and the next may do.

    Args:
        every_s: seconds between two looks.
    """

    def __init__(self, every_s: float):
        self._every_s, self._over = every_s, threading.Event()
        self._thread = threading.Thread(target=self._watch, name=type(self).__name__.lower(), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()
        self._try(self._last)

    @abstractmethod
    def _look(self) -> None:
        """Looks once."""

    def _last(self) -> None:  # noqa: B027 - most have nothing to do then
        """What is to be done as it is left; nothing by default."""

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._try(self._look)

    def _try(self, look: Callable[[], None]) -> None:
        try:
            look()
        except Exception:
            log.exception("%s", self._thread.name)
