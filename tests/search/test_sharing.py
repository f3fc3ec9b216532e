"""How studies share a cluster's lanes."""

import pytest

from search.sharing import Share, divide

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
