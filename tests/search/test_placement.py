"""Where lanes find room, and what is said where they do not."""

import pytest

from search.placement import ClusterNow, alike, fits, how_many, in_words, why_waiting

CPU, GPU = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}
BIG = {"CPU": 8.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("wanted", "nodes", "there"),
    [
        ([CPU], [], False),
        ([CPU], [{"CPU": 0.0}], False),
        ([CPU], [CPU], True),
        ([GPU], [{"CPU": 64.0}], False),
        ([CPU, CPU], [CPU, CPU], True),
        ([{"CPU": 2.0}], [CPU, CPU], False),
        ([{"CPU": 3.0}, CPU], [{"CPU": 3.0}, CPU], True),
        ([CPU, {"CPU": 3.0}], [CPU, {"CPU": 3.0}], True),
        ([CPU, GPU], [GPU, CPU], True),
    ],
)
def test_each_bundle_needs_a_node_with_room(wanted, nodes, there):
    assert fits(wanted, nodes) == there


def test_as_many_lanes_fit_as_find_room_side_by_side():
    assert how_many([GPU], [BIG, BIG]) == 8
    assert how_many([GPU, GPU], [BIG, {"CPU": 2.0, "GPU": 1.0}]) == 2
    assert how_many([CPU], []) == 0


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (ClusterNow([CPU], [{}], True, {"gpu": 2}), "the autoscaler is starting 2 gpu"),
        (ClusterNow([CPU], [{}], True, failed={"gpu": "no quota"}), "could not start gpu (no quota)"),
        (ClusterNow([CPU], [{}], True, infeasible=[[GPU]]), "no node type has 1 CPU and 1 GPU"),
        (ClusterNow([BIG], [{}], True, infeasible=[[GPU]]), "all nodes are taken, the cluster's maximum"),
        (ClusterNow([BIG], [{}], True), "the autoscaler was asked for another one"),
        (ClusterNow([BIG], [BIG]), "being placed"),
        (ClusterNow([BIG], [{}]), "all nodes are taken, and the cluster has no autoscaler"),
        (ClusterNow([CPU], [{}]), "no node has 1 CPU and 1 GPU (the largest has 1 CPUs and 0 GPUs)"),
    ],
)
def test_a_lane_that_waits_says_why(now, words):
    assert words in why_waiting([GPU], now)


def test_requests_are_told_apart_by_what_they_ask_for():
    assert alike([GPU, CPU], [CPU, {**GPU, "bundle_group_abc": 0.001}])
    assert not alike([GPU], [GPU, GPU])
    assert in_words([GPU]) == "1 CPU and 1 GPU"
    assert in_words([{"CPU": 4.0}] * 2) == "2 workers of 4 CPUs each"
