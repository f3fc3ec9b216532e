"""How several studies share a cluster: by their priorities, and within one evenly.

Each study tells one actor of the cluster's how many lanes it has and wants. Where all find room, nobody is limited.
Where some wait and no node is on its way, each gets its share: one lane first, then by priority, and among equals one
after another (max-min fairness). A study that has more than its share lets lanes go at their next epochs' ends.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from search.periodic import Periodic
from search.placement import Resources, bundles, look
from search.settings import Settings

NAMESPACE, NAME = "ofakd-search", "shares"
TELLS_EVERY_S = 3.0
FORGOTTEN_S = 30.0  # a study that has told nothing for so long is no more
PATIENCE_S = 20.0  # a lane that has waited for so long is in want


@dataclass
class Share:
    """What a study has told.

    Attributes:
        study: its folder, as two people's studies may have one name.
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

    def tell(self, share: Share) -> int | None:
        """A study's news; how many lanes it may have, None for as many as it wants."""
        now = time.monotonic()
        share.told = now
        self._shares[share.study] = share
        self._shares = {name: one for name, one in self._shares.items() if now - one.told < FORGOTTEN_S}
        in_want = any(one.held < one.wanted and one.waits_s > PATIENCE_S for one in self._shares.values())
        if len(self._shares) == 1 or not in_want:
            return None
        cluster = look()
        if cluster.starting:
            return None
        shares = list(self._shares.values())
        room = total([*cluster.free, *(one.lane for one in shares for _ in range(one.held))])
        return divide(shares, room)[share.study]

    def leave(self, study: str) -> None:
        """A study is at its end."""
        self._shares.pop(study, None)


class Sharing(Periodic):
    """A study's side: tells of its lanes while it runs, and keeps them to its share.

    Args:
        lanes: the study's; their `share` is set.
        settings: its priority and the size of a lane.
        folder: the study's.
    """

    def __init__(self, lanes, settings: Settings, folder: Path):
        import ray

        super().__init__(TELLS_EVERY_S)
        options = {"name": NAME, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
        self._shares = ray.remote(Shares).options(**options, num_cpus=0, max_restarts=-1).remote()
        self._lanes, self._priority, self._study = lanes, settings.priority, str(folder)
        self._share: int | None = None
        lanes.share = lambda: self._share
        self._lane = total(bundles(settings))

    def _look(self) -> None:
        import ray

        wanted, held, waits_s = self._lanes.demand()
        share = Share(self._study, self._priority, self._lane, wanted, held, waits_s)
        try:
            self._share = ray.get(self._shares.tell.remote(share))
        except Exception:
            self._share = None  # where nobody answers, nobody is limited
            raise

    def _last(self) -> None:
        self._shares.leave.remote(self._study)


def total(parts: Iterable[Resources]) -> Resources:
    """What several take, or have, together."""
    found: Resources = {}
    for part in parts:
        for name, amount in part.items():
            found[name] = found.get(name, 0.0) + amount
    return found
