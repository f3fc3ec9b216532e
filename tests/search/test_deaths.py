"""Whose fault it is that Ray ended processes for want of memory."""

from search.broker import NO_FAULT
from search.deaths import why_memory

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
