"""How several studies share a cluster: by their priorities, and within one evenly.

Each study tells one actor of the cluster's how many lanes it has and wants. Where all find room, nobody is limited.
Where some wait and no node is on its way, each gets its share: one lane first, then by priority, and among equals one
after another (max-min fairness). A study that has more than its share lets lanes go at their next epochs' ends.
"""

import logging
import threading
import time
from dataclasses import dataclass

from search.placement import Resources, bundles, look
from search.settings import Settings

NAMESPACE, NAME = "ofakd-search", "shares"
TELLS_EVERY_S = 3.0
FORGOTTEN_S = 30.0  # a study that has told nothing for so long is no more
PATIENCE_S = 20.0  # a lane that has waited for so long is in want

log = logging.getLogger(__name__)


@dataclass
class Share:
    """What a study has told.

    Attributes:
        lane: what one lane takes, all its workers together.
        wanted, held: lanes.
        waits_s: for how long the first of those that are wanted and not held has waited.
        told: when, by the monotonic clock.
    """

    study: str
    priority: int
    lane: Resources
    wanted: int
    held: int
    waits_s: float
    told: float = 0.0


def divide(shares: list[Share], room: Resources) -> dict[str, int]:
    """How many lanes each study gets of so much room.

    Args:
        shares: what they want.
        room: what there is in all.
    """
    left, got = dict(room), {one.study: 0 for one in shares}
    order = sorted(shares, key=lambda one: (-one.priority, one.study))

    def give(one: Share) -> bool:
        if got[one.study] >= one.wanted or any(left.get(name, 0.0) < amount for name, amount in one.lane.items()):
            return False
        got[one.study] += 1
        for name, amount in one.lane.items():
            left[name] -= amount
        return True

    for one in order:
        give(one)
    for priority in sorted({one.priority for one in shares}, reverse=True):
        equals = [one for one in order if one.priority == priority]
        while any(give(one) for one in sorted(equals, key=lambda one: got[one.study])):
            pass
    return got


class Shares:
    """The actor: one a cluster, for as long as that stands."""

    def __init__(self):
        self._shares: dict[str, Share] = {}

    def tell(self, share: Share) -> tuple[int | None, list[str]]:
        """A study's news; how many lanes it may have (None: as many as it wants), and who else is there."""
        now = time.monotonic()
        share.told = now
        self._shares[share.study] = share
        self._shares = {name: one for name, one in self._shares.items() if now - one.told < FORGOTTEN_S}
        others = [name for name in self._shares if name != share.study]
        in_want = any(one.held < one.wanted and one.waits_s > PATIENCE_S for one in self._shares.values())
        if not others or not in_want:
            return None, others
        cluster = look()
        if cluster.starting:
            return None, others
        room: Resources = {}
        for node in cluster.free:
            for name, amount in node.items():
                room[name] = room.get(name, 0.0) + amount
        for one in self._shares.values():
            for name, amount in one.lane.items():
                room[name] = room.get(name, 0.0) + one.held * amount
        return divide(list(self._shares.values()), room)[share.study], others

    def leave(self, study: str) -> None:
        """A study is at its end."""
        self._shares.pop(study, None)


class Sharing:
    """A study's side: tells of its lanes while it runs, and keeps them to its share.

    Args:
        lanes: the study's; their `share` is set.
        settings: its name, priority and the size of a lane.
    """

    def __init__(self, lanes, settings: Settings):
        import ray

        options = {"name": NAME, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
        self._shares = ray.remote(Shares).options(**options, num_cpus=0, max_restarts=-1).remote()
        self._lanes, self._settings = lanes, settings
        self._share: int | None = None
        self.others: list[str] = []
        lanes.share = lambda: self._share
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="sharing", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()
        self._shares.leave.remote(self._settings.name)

    def _tell(self) -> None:
        import ray

        lane: Resources = {}
        for bundle in bundles(self._settings):
            for name, amount in bundle.items():
                lane[name] = lane.get(name, 0.0) + amount
        while not self._over.wait(TELLS_EVERY_S):
            wanted, held, waits_s = self._lanes.demand()
            share = Share(self._settings.name, self._settings.priority, lane, wanted, held, waits_s)
            try:
                self._share, self.others = ray.get(self._shares.tell.remote(share))
            except Exception:  # without it nobody is limited
                log.exception("telling other studies of this one's lanes")
                self._share = None
