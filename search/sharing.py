"""How several studies share a cluster: by their priorities, and within one evenly.

Each study tells one actor of the cluster's how many lanes it has and wants. Where all find room, nobody is limited.
Where some wait and no node is on its way, each gets its share: one lane first, then by priority, and among equals one
after another (max-min fairness). A study that has more than its share lets lanes go at their next epochs' ends; one
that is kept to its share says so, as lanes that wait do.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from search.periodic import Periodic
from search.placement import ClusterNow, Resources, bundles, look
from search.settings import Settings

NAMESPACE, NAME = "ofakd-search", "shares"
TELLS_EVERY_S = 3.0
FORGOTTEN_S = 30.0  # a study that has told nothing for so long is no more
PATIENCE_S = 20.0  # a lane that has waited for so long is in want
STUCK_S = 60.0  # one that has waited for so long though its study has less than its share finds no whole place
ANSWER_S = 20.0


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


def decide(shares: list[Share], cluster: ClusterNow, before: dict[str, int | None]) -> dict[str, int | None]:
    """How many lanes each study may ask for; None: as many as it wants.

    Args:
        shares: what the studies have told.
        cluster: as it is now.
        before: the last answer. Who has been kept to a share does not wait, and is in want all the same.
    """
    free = dict.fromkeys((one.study for one in shares), None)
    if len(shares) == 1 or cluster.starting or not any(_in_want(one, before.get(one.study)) for one in shares):
        return free
    room = total([*cluster.free, *(one.lane for one in shares for _ in range(one.held))])
    got = divide(shares, room)
    lacking = [one for one in shares if one.held < got[one.study]]
    stuck = next((one for one in lacking if one.waits_s > STUCK_S), None)
    if stuck:  # what is free is spread over nodes none of which has a whole lane: the others make room for one more
        others = [one for one in shares if one is not stuck]
        less = divide(others, left_of(room, stuck.lane, got[stuck.study] + 1))
        got |= {name: max(min(1, got[name]), lanes) for name, lanes in less.items()}
    elif cluster.autoscaler and not lacking:  # one asks for more, or no node would ever come; it has the next lane
        able = [one for one in shares if got[one.study] < one.wanted]
        if able:
            got[min(able, key=lambda one: (-one.priority, got[one.study], one.study)).study] += 1
    return {one.study: None if got[one.study] >= one.wanted else got[one.study] for one in shares}


def _in_want(one: Share, given: int | None) -> bool:
    return one.held < one.wanted and (one.waits_s > PATIENCE_S or (given is not None and given < one.wanted))


class Shares:
    """The actor: one a cluster, for as long as that stands."""

    def __init__(self):
        self._shares: dict[str, Share] = {}
        self._given: dict[str, int | None] = {}

    def tell(self, share: Share) -> int | None:
        """A study's news; how many lanes it may ask for, None for as many as it wants."""
        share.told = time.monotonic()
        self._shares[share.study] = share
        self._shares = {name: one for name, one in self._shares.items() if share.told - one.told < FORGOTTEN_S}
        if len(self._shares) == 1:  # nobody needs to look
            self._given = {}
            return None
        self._given = decide(list(self._shares.values()), look(), self._given)
        return self._given[share.study]

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
        # On the head: elsewhere it would keep a node that has nothing else to do.
        options |= {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}, "max_restarts": -1}
        self._shares = ray.remote(Shares).options(**options).remote()
        self._lanes, self._priority, self._study = lanes, settings.priority, str(folder)
        self._share: int | None = None
        lanes.share = lambda: self._share
        self._lane = total(bundles(settings))

    def _look(self) -> None:
        import ray

        wanted, held, waits_s = self._lanes.demand()
        share = Share(self._study, self._priority, self._lane, wanted, held, waits_s)
        try:
            self._share = ray.get(self._shares.tell.remote(share), timeout=ANSWER_S)
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


def left_of(room: Resources, part: Resources, count: int) -> Resources:
    """What is left of some room after so many parts of it."""
    return {name: amount - count * part.get(name, 0.0) for name, amount in room.items()}
