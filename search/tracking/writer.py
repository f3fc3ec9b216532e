"""When MLflow is written to: soon, several changes in one request, and again until the server has everything.

A study's folder says what there is to write, and `Mirror` how. This keeps which trials have changed, tries until it is
done, and waits while the server stays away; training never does.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from search.tracking.credentials import shown
from search.tracking.mirror import Mirror
from search.tracking.store import Unreachable, first_line, refused
from trainables.errors import InputError

TOGETHER_S = 5.0  # changes that come within it are written together: each request costs more than what is in it
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # between looks for a server that is away
TRIES = 3  # of what a server that answers does not take, before it waits until it changes or the study ends
GRACE_S = 3.0  # for the request in hand when closing runs out of time
STUDY = ""  # the parent run's place among the trials' folders
# A server's answers take long in which it does little; SQLite has one writer at a time.
SIDE_BY_SIDE = {"http": 8, "https": 8, "sqlite": 1}


class Writer:
    """Keeps MLflow up to date with a study's folder, in threads of its own.

    Args:
        mirror: what writes.
        on_note: told, in one of those threads, what a person should know: the server is away, it is back.

    Attributes:
        written: the trials of which something was written.
    """

    def __init__(self, mirror: Mirror, on_note: Callable[[str], None] = lambda text: None):
        self._mirror, self._on_note = mirror, on_note
        self.written: set[str] = set()
        self._changed: dict[str, None] = {}  # places to be written, in order
        self._in_hand: set[str] = set()
        self._aside: set[str] = set()  # places that were not taken again and again
        self._live: set[str] = set()
        self._failures: dict[str, int] = {}  # of each place in a row, while the server answered
        self._told: set[str] = set()
        self._open = False  # whether what is known of the server holds
        self._opened = self._down = self._barred = self._ended = self._doubt = False
        self._looks = 0  # for a server that is away
        self._deadline: float | None = None  # set when closing
        self._wake = threading.Condition()
        side_by_side = SIDE_BY_SIDE.get(mirror.uri.split(":")[0], 4)
        self._pool = ThreadPoolExecutor(side_by_side, thread_name_prefix="tracking")
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def warm_up(self) -> None:
        """A new database's first use takes seconds, which pass while other things come up; writes nothing of ours."""
        with contextlib.suppress(Exception):  # opening the study meets it again, and tells
            self._mirror.reach()

    def open(self, offline: bool) -> None:
        """Finds or makes the study's experiment and begins to write.

        Args:
            offline: whether the server may be away; it is looked for later then.

        Raises:
            InputError: the name is taken, or the store refuses.
        """
        if self._thread.ident is not None:
            return  # asked twice
        for last in () if offline else (False, False, True):
            try:
                self._reopen()
                break
            except InputError:
                raise
            except Exception as error:  # each store and driver has its own
                if last:
                    raise refused(self._mirror.uri, error) from error
        with self._wake:
            self._changed[STUDY] = None
        self._thread.start()

    def tell(self, place: str = STUDY, live: bool = False) -> None:
        """Something changed in the folder.

        Args:
            place: the trial's folder within the study's; by default the study's own.
            live: whether that trial is being trained from now on.
        """
        with self._wake:
            if live:
                self._live.add(place)
            self._aside.discard(place)
            self._failures.pop(place, None)
            self._changed[place] = None
            self._wake.notify()

    def close(self, timeout: float | None) -> int:
        """Writes what is pending and ends the parent run; trials still open can be continued by a resumed study.

        Args:
            timeout: seconds after which the rest stays for later; None for as many as it takes.

        Returns:
            How many trials (and the study itself, as one) MLflow still lacks something of.
        """
        if self._thread.ident is None:
            return 0  # never opened
        with self._wake:
            self._changed |= dict.fromkeys([STUDY, *sorted(self._live), *sorted(self._aside)])
            self._live.clear()
            self._aside.clear()
            self._failures.clear()
            self._deadline = math.inf if timeout is None else time.monotonic() + timeout
            self._wake.notify()
        self._thread.join(None if timeout is None else timeout + GRACE_S)
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._wake:
            left = {*self._changed, *self._in_hand, *self._aside}
        if not self._opened:  # whatever an earlier session left too
            left |= set(self._mirror.places())
        return len(left if self._ended else left | {STUDY})

    def _work(self) -> None:
        while not self._closed():
            with self._wake:
                self._wake.wait_for(lambda: self._changed or self._deadline)
                pause = PAUSES_S[min(self._looks, len(PAUSES_S) - 1)] if self._down else TOGETHER_S
                self._wake.wait_for(lambda: self._deadline, timeout=pause)
            self._pass()
        if self._opened and not self._down and not self._barred:
            self._end()

    def _closed(self) -> bool:
        if self._deadline is None:
            return False
        done = not self._changed or self._down or self._barred
        return done or time.monotonic() > self._deadline

    def _pass(self) -> None:
        """Writes what has changed, the trials before the study, whose end they belong to."""
        if self._barred or ((self._down or not self._open) and not self._look()):
            return
        with self._wake:
            places = [place for place in self._changed if place != STUDY]
            study = STUDY in self._changed
        list(self._pool.map(self._attempt_trial, places))
        if study:
            self._attempt(STUDY, self._write_study)

    def _look(self) -> bool:
        """Whether the server answers, and has our experiment; what is there is seen anew."""
        try:
            self._reopen()
        except Unreachable as error:
            self._away(error)
        except InputError as error:
            if self._opened:
                self._away(error)  # a log-in that has run out, say
            else:  # found only now that the server answers
                self._barred = True
                self._note(f"nothing is written: {'; '.join(error.problems)}")
        except Exception as error:
            self._away(error)
        else:
            return True
        return False

    def _reopen(self) -> None:
        self._mirror.reach()
        self._mirror.open()
        known = dict.fromkeys([STUDY, *self._mirror.places()])
        with self._wake:
            self._changed |= {place: None for place in known if place not in self._aside}
        self._open = self._opened = True
        if self._down:
            self._down, self._looks = False, 0
            self._told.clear()
            self._note(f"{shown(self._mirror.uri)} answers again; what waited is written")

    def _attempt_trial(self, place: str) -> None:
        def write() -> None:
            if self._mirror.trial(place, place in self._live):
                self.written.add(place)

        self._attempt(place, write)

    def _write_study(self) -> None:
        if problem := self._mirror.study():
            self._note(problem)

    def _attempt(self, place: str, write: Callable[[], None]) -> None:
        if self._down or (self._deadline and time.monotonic() > self._deadline):
            return
        with self._wake:
            self._changed.pop(place, None)
            self._in_hand.add(place)
        try:
            write()
        except Exception as error:  # whatever it is, training must go on without MLflow
            self._failed(place, error)
        else:
            self._failures.pop(place, None)
        finally:
            self._in_hand.discard(place)

    def _failed(self, place: str, error: Exception) -> None:
        self._open, self._doubt = False, True  # it may have arrived: before the next pass it is seen what is there
        with self._wake:
            self._changed[place] = None
        try:
            self._mirror.reach()
        except Exception:
            self._away(error)
            return
        with self._wake:
            self._failures[place] = self._failures.get(place, 0) + 1
            if self._failures[place] < TRIES:
                return
            self._changed.pop(place, None)
            self._aside.add(place)
        what = f"trial {place.split('/')[-1]}" if place else "the study's own run"
        self._note(f"{shown(self._mirror.uri)} does not take {what} ({first_line(error)}); training goes on")

    def _away(self, error: Exception) -> None:
        self._down, self._looks = True, self._looks + 1
        where = f"training goes on, what is logged waits in {self._mirror.folder}"
        self._note(f"{shown(self._mirror.uri)} fails ({first_line(error)}); {where}", once="away")

    def _note(self, text: str, once: str | None = None) -> None:
        """Tells a person, each thing once."""
        with self._wake:
            if (once or text) in self._told:
                return
            self._told.add(once or text)
        self._on_note(f"tracking: {text}")

    def _end(self) -> None:
        try:
            if self._doubt or not self._open:  # a request that was given up may have been carried out late
                self._mirror.reach()
                self._mirror.open()
            self._mirror.end()
        except Exception as error:
            self._note(f"{shown(self._mirror.uri)} fails ({first_line(error)}) as the study's run is ended")
        else:
            self._ended = True
