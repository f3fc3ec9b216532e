"""How studies share a cluster's lanes."""

import pytest

from search.placement import ClusterNow
from search.sharing import Share, decide, divide

CPU, GPU = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}


def share(study, wanted, priority=0, lane=CPU):
    return Share(study, priority, lane, wanted, 0, 0.0)


@pytest.mark.parametrize(
    ("shares", "room", "got"),
    [
        ([share("a", 9)], {"CPU": 4.0}, [4]),
        ([share("a", 9), share("b", 9)], {"CPU": 4.0}, [2, 2]),
        ([share("a", 9), share("b", 1)], {"CPU": 4.0}, [3, 1]),
        ([share("a", 9), share("b", 9, priority=1)], {"CPU": 4.0}, [1, 3]),
        ([share("a", 9), share("b", 2, priority=1)], {"CPU": 4.0}, [2, 2]),
        ([share("a", 9), share("b", 9), share("c", 9)], {"CPU": 2.0}, [1, 1, 0]),
        ([share("a", 9), share("b", 9, priority=1)], {"CPU": 1.0}, [0, 1]),
        ([share("a", 9, lane=GPU), share("b", 9)], {"CPU": 8.0, "GPU": 2.0}, [2, 6]),
        ([share("a", 9, lane={"CPU": 4.0}), share("b", 9)], {"CPU": 8.0}, [1, 4]),
    ],
    ids=["alone", "evenly", "what-one-does-not-want", "priority", "priority-is-satisfied", "too-few", "the-first-lane",
         "other-resources", "larger-lanes"],
)  # fmt: skip
def test_lanes_are_shared_by_priority_and_then_evenly(shares, room, got):
    assert list(divide(shares, room).values()) == got


def now(free=(), **more):
    return ClusterNow([], [dict(one) for one in free], **more)


def told(study, wanted, held, waits_s=0.0, lane=CPU):
    return Share(study, 0, lane, wanted, held, waits_s)


def test_who_is_kept_to_a_share_stays_so_until_there_is_room():
    a, b = told("a", 2, 2), told("b", 2, 0, waits_s=30)
    given = decide([a, b], now(), {})
    assert given == {"a": 1, "b": 1}
    a.held, b.held, b.waits_s = 1, 1, 0  # nobody waits any more, as nobody asks for more
    assert decide([a, b], now(), given) == given
    assert decide([a, b], now([CPU, CPU]), given) == {"a": None, "b": None}, "two nodes have come"
    assert decide([a], now(), given) == {"a": None}, "the other one is over"


def test_a_short_wait_and_nodes_that_are_on_their_way_limit_nobody():
    a, b = told("a", 2, 2), told("b", 2, 0, waits_s=5)
    assert decide([a, b], now(), {}) == {"a": None, "b": None}
    b.waits_s = 30
    assert decide([a, b], now(starting={"gpu": 1}), {}) == {"a": None, "b": None}


def test_with_an_autoscaler_one_asks_for_more_once_all_have_their_shares():
    a, b = told("a", 9, 2), told("b", 9, 0, waits_s=30)
    given = decide([a, b], now(autoscaler=True), {})
    assert given == {"a": 1, "b": 1}, "first the other one has its lane"
    a.held = b.held = 1
    assert decide([a, b], now(autoscaler=True), given) == {"a": 2, "b": 1}


def test_lanes_that_are_spread_make_room_for_one_that_needs_a_whole_node():
    pair = {"GPU": 2.0}
    a, b = told("a", 9, 2, lane={"GPU": 1.0}), told("b", 1, 0, waits_s=30, lane=pair)
    free = [{"GPU": 1.0}, {"GPU": 1.0}]  # of two nodes
    assert decide([a, b], now(free), {})["a"] == 2, "all in all there is room for both"
    b.waits_s = 90
    assert decide([a, b], now(free), {})["a"] == 1, "there was not"
