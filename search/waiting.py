"""How a study's lanes stand, told to the view and to MLflow: how many are up, how many wait, why and for how long."""

import time

from search.lanes import UP, WAITING, Lane, Lanes
from search.periodic import Periodic
from search.tracking.tracker import Tracker

TOLD_EVERY_S = 1.0


class Waiting(Periodic):
    """Looks at the lanes while the study runs; whoever shows it is told what has changed.

    Args:
        lanes: the study's.
        view: told by `lanes(up, waiting, since, reason)`.
        tracker: gets `lanes/up`, `lanes/waiting` and `lanes/waited_s` over the session's seconds, and a tag `waiting`.
    """

    def __init__(self, lanes: Lanes, view, tracker: Tracker):
        super().__init__(TOLD_EVERY_S)
        self._lanes, self._view, self._tracker = lanes, view, tracker
        self._counts, self._reason = (0, 0), ""
        self._waited_s = 0.0

    def _look(self) -> None:
        self._tell(self._lanes.standing())

    def _last(self) -> None:
        self._tell([])

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
