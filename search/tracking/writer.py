"""When MLflow is written to: soon, several changes in one request, and again until the server has everything.

A study's folder says what there is to write, and `Mirror` how. This keeps which trials have changed, tries until it is
done, and waits while the server stays away; training never does.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from search.tracking.mirror import Mirror
from search.tracking.store import first_line, refused, shown
from trainables.errors import InputError

TOGETHER_S = 5.0  # changes that come within it are written together: each request costs more than what is in it
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # between looks for a server that is away
TRIES = 3  # of what a server that answers refuses
GRACE_S = 3.0  # for the request in hand when closing runs out of time
STUDY = ""  # the parent run's place among the trials' folders
# A server's answers take long in which it does little; SQLite has one writer at a time.
SIDE_BY_SIDE = {"http": 8, "https": 8, "sqlite": 1}


class Writer:
    """Keeps MLflow up to date with a study's folder, in threads of its own.

    Args:
        mirror: what writes.
        on_note: told, in one of those threads, what a person should know: the server is away, it is back.
    """

    def __init__(self, mirror: Mirror, on_note: Callable[[str], None] = lambda text: None):
        self._mirror, self._on_note = mirror, on_note
        self._changed: dict[str, None] = {}  # places to be written, in order
        self._live: set[str] = set()
        self._refused: dict[str, int] = {}  # how often a server that answers refused a place
        self._aside: set[str] = set()  # places that it refused again and again, until they change or at the end
        self._barred = False  # the experiment belongs to another study
        self._open = self._down = self._doubt = False
        self._looks = 0  # for a server that is away
        self._deadline: float | None = None  # set when closing
        self._wake = threading.Condition()
        side_by_side = SIDE_BY_SIDE.get(mirror.uri.split(":")[0], 4)
        self._pool = ThreadPoolExecutor(side_by_side, thread_name_prefix="tracking")
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def warm_up(self) -> None:
        """A new database's first use takes seconds, which pass while other things come up; writes nothing of ours."""
        try:
            self._mirror.reach()
        except Exception:
            return  # opening the study meets it again, and tells

    def open(self, offline: bool) -> None:
        """Finds or makes the study's experiment and begins to write.

        Args:
            offline: whether the server may be away; everything waits then.

        Raises:
            InputError: the name is taken, or the store refuses.
        """
        try:
            self._reopen()
        except InputError:
            raise
        except Exception as error:  # each store and driver has its own
            if not offline:
                raise InputError(refused(self._mirror.uri, error)) from error
            self._away(error)
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
            self._changed[place] = None
            self._wake.notify()

    def close(self, timeout: float) -> int:
        """Writes what is pending and ends the parent run; trials still open can be continued by a resumed study.

        Args:
            timeout: seconds after which the rest stays for later.

        Returns:
            How many trials (and the study itself, as one) MLflow still lacks something of.
        """
        if self._thread.ident is None:
            return 0  # never opened
        with self._wake:
            self._changed |= dict.fromkeys([STUDY, *sorted(self._live), *sorted(self._aside)])
            self._live.clear()
            self._aside.clear()
            self._deadline = time.monotonic() + timeout
            self._wake.notify()
        self._thread.join(timeout + GRACE_S)
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._wake:
            return len(self._changed) + len(self._aside)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._changed or self._deadline)
                pause = PAUSES_S[min(self._looks, len(PAUSES_S) - 1)] if self._down else TOGETHER_S
                self._wake.wait_for(lambda: self._deadline, timeout=pause)
            closing = self._deadline is not None
            self._pass()
            done = not self._changed or self._down or self._barred
            if closing and (done or time.monotonic() > self._deadline):
                break
        if not self._changed:
            self._attempt(STUDY, self._end)

    def _pass(self) -> None:
        if self._barred:
            return
        if self._down or not self._open:
            try:
                self._reopen()
            except InputError as error:  # found only now that the server answers
                self._barred = True
                self._on_note(f"tracking: nothing is written: {'; '.join(error.problems)}")
                return
            except Exception as error:
                self._away(error)
                return
        with self._wake:
            places = [place for place in self._changed if place != STUDY]
        self._attempt(STUDY, self._mirror.study)
        list(self._pool.map(self._attempt_trial, places))

    def _reopen(self) -> None:
        self._mirror.reach()
        self._mirror.open()
        self._open = True
        with self._wake:
            known = dict.fromkeys([STUDY, *self._mirror.places()])
            self._changed |= {place: None for place in known if place not in self._aside}
        if self._down:
            self._down, self._looks = False, 0
            self._on_note(f"tracking: {shown(self._mirror.uri)} answers again; what waited is written")

    def _attempt_trial(self, place: str) -> None:
        self._attempt(place, lambda: self._mirror.trial(place, place in self._live))

    def _attempt(self, place: str, write: Callable[[], object]) -> None:
        if self._down or not self._open or (self._deadline and time.monotonic() > self._deadline):
            return
        with self._wake:
            self._changed.pop(place, None)
        try:
            write()
        except Exception as error:  # whatever it is, training must go on without MLflow
            self._failed(place, error)
        else:
            self._refused.pop(place, None)

    def _failed(self, place: str, error: Exception) -> None:
        with self._wake:
            self._changed[place] = None
        self._open, self._doubt = False, True  # the write may have arrived: look again what is there
        try:
            self._mirror.reach()
        except Exception:
            self._away(error)
            return
        self._refused[place] = self._refused.get(place, 0) + 1
        if self._refused[place] >= TRIES:
            self._set_aside(place, first_line(error))

    def _set_aside(self, place: str, error: str) -> None:
        with self._wake:
            self._changed.pop(place, None)
            self._aside.add(place)
        what = f"trial {place.split('/')[-1]}" if place else "the study's own run"
        self._on_note(f"tracking: {shown(self._mirror.uri)} refuses {what} ({error}); training goes on")

    def _away(self, error: Exception) -> None:
        with self._wake:
            told, self._down, self._looks = self._down, True, self._looks + 1
        if not told:
            self._on_note(
                f"tracking: {shown(self._mirror.uri)} fails ({first_line(error)}); training goes on, what is logged "
                f"waits in {self._mirror.folder}"
            )

    def _end(self) -> None:
        if self._doubt:  # a request that was given up may have been carried out late: no run twice
            self._mirror.open()
            self._mirror.study()
        self._mirror.end()
