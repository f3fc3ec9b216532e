"""Doing what needs an object store until it is done, as a store may be away for a while."""

import time
from collections.abc import Callable
from typing import TypeVar

from trainables.disk import DiskError
from trainables.errors import one_line

WAIT_S = 3600.0  # how long a store may be away before a trial is given up
LONGEST_PAUSE_S = 5.0  # between two tries

T = TypeVar("T")


class Gone(OSError):
    """The store was away for too long, or whoever waited for it was told to wait no more."""


def persist(
    work: Callable[[], T],
    wait_s: float = WAIT_S,
    *,
    away: Callable[[Exception], None] = lambda error: None,
    given_up: Callable[[], bool] = lambda: False,
) -> T:
    """Does what needs the store, again and again until it is done.

    Args:
        work: raises where the store does not do it; that a file is not there is an answer, and that a disk
            of this machine is full is none that waiting for the store would change.
        wait_s: how long.
        away: told of every failure.
        given_up: whether to wait no more.

    Raises:
        FileNotFoundError, DiskError: from the work.
        Gone: it was not done in time.
    """
    end, pause = time.monotonic() + wait_s, 0.2
    while True:
        try:
            return work()
        except (FileNotFoundError, DiskError):
            raise
        except Exception as error:  # each store's client has its own
            away(error)
            if given_up() or time.monotonic() + pause > end:
                raise Gone(f"the storage does not answer ({one_line(error)})") from error
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)
