"""Whose fault it is that processes died."""

import pytest
import ray
from ray._private import state
from ray.core.generated.common_pb2 import ActorDeathCause, ActorDiedErrorContext

from search.broker import NO_FAULT
from search.deaths import why_died, why_memory

ENDED = """3 worker(s) were killed due to the node running low on memory.
Considered workers: [
Selected to kill: (Actor(aa): job ID=01, task name=Broker.__init__, pid=1, actual memory used=0.11GB)
Selected to kill: (Actor(bb): job ID=01, task name=RayTrainWorker.__init__, pid=2, actual memory used=1.90GB)
Selected to kill: (Actor(cc): job ID=01, task name=RayTrainWorker.__init__, pid=3, actual memory used=6.02GB)
(Actor(dd): job ID=01, task name=RayTrainWorker.__init__, pid=4, actual memory used=9.00GB)
]"""


def test_the_largest_of_those_that_were_ended_is_at_fault():
    words = "its worker of 6.0 GB was killed for want of memory: 3 worker(s) were killed due to the node running low on"
    assert why_memory("cc", ENDED) == f"{words} memory."
    assert why_memory("aa", ENDED) == why_memory("bb", ENDED) == NO_FAULT


def test_where_ray_tells_no_sizes_each_is_taken_to_be_at_fault():
    assert why_memory("aa", "low on memory\nmore") == "its worker was killed for want of memory: low on memory"


def died(reason):
    return ActorDeathCause(actor_died_error_context=ActorDiedErrorContext(reason=reason))


def memory(message=ENDED):
    cause = ActorDeathCause()
    cause.oom_context.error_message = message
    return cause


KILLED, CRASHED = died("RAY_KILL"), died("WORKER_DIED")
LARGEST = "its worker of 6.0 GB was killed for want of memory: 3 worker(s) were killed due to the node running low on"


@pytest.mark.parametrize(
    ("causes", "gone", "why"),
    [
        ({"aa": CRASHED}, None, None),
        ({"aa": None}, None, None),
        ({"aa": CRASHED}, "n-aa", NO_FAULT),
        ({"aa": died("OWNER_DIED")}, None, NO_FAULT),
        ({"aa": KILLED, "bb": CRASHED}, None, None),
        ({"aa": KILLED, "bb": CRASHED}, "n-bb", NO_FAULT),
        ({"aa": KILLED, "bb": died("NODE_DIED")}, None, NO_FAULT),
        ({"aa": KILLED, "cc": memory()}, None, f"{LARGEST} memory."),
        ({"bb": memory(), "cc": memory()}, None, f"{LARGEST} memory."),
        ({"aa": KILLED, "bb": memory()}, None, NO_FAULT),
    ],
)
def test_all_ranks_of_a_trial_are_asked_why_they_died(monkeypatch, causes, gone, why):
    ranks = [{"node": f"n-{actor}", "actor": actor} for actor in causes]
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": r["node"], "Alive": r["node"] != gone} for r in ranks])
    monkeypatch.setattr(state, "actors", lambda actor: {"DeathCause": causes[actor]} if causes[actor] else {})
    assert why_died({"pid": 1, "ranks": ranks}) == why
