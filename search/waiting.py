"""How a study's lanes stand, told to the view and to MLflow: how many are up, how many wait, why and for how long."""

import threading
import time

from search.lanes import UP, WAITING, Lane, Lanes
from search.tracking.tracker import Tracker

TOLD_EVERY_S = 1.0


class Waiting:
    """Looks at the lanes while the study runs; whoever shows it is told what has changed.

    Args:
        lanes: the study's.
        view: told by `lanes(up, waiting, since, reason)`.
        tracker: gets `lanes/up`, `lanes/waiting` and `lanes/waited_s` over the session's seconds, and a tag `waiting`.
    """

    def __init__(self, lanes: Lanes, view, tracker: Tracker):
        self._lanes, self._view, self._tracker = lanes, view, tracker
        self._counts, self._reason = (0, 0), ""
        self._waited_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="waiting", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()
        self._tell([])

    def _watch(self) -> None:
        while not self._over.wait(TOLD_EVERY_S):
            self._tell(self._lanes.standing())

    def _tell(self, standing: list[Lane]) -> None:
        waiting = [lane for lane in standing if lane.state == WAITING and lane.reason]
        up = sum(lane.state == UP for lane in standing)
        since = min((lane.since for lane in waiting), default=time.monotonic())
        reason = waiting[0].reason if waiting else ""
        self._waited_s += TOLD_EVERY_S * len(waiting)
        self._view.lanes(up, len(waiting), since, reason)
        counts = up, len(waiting)
        if counts != self._counts:
            step = int(self._view.elapsed)
            for name, value in (("up", up), ("waiting", len(waiting)), ("waited_s", self._waited_s)):
                self._tracker.study_metric(f"lanes/{name}", float(value), step)
        if (reason, len(waiting)) != (self._reason, self._counts[1]):
            at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() - (time.monotonic() - since)))
            self._tracker.study_tags({"waiting": f"{len(waiting)} lane(s) since {at}: {reason}" if reason else ""})
        self._counts, self._reason = counts, reason
