"""Notices that the Ray cluster which a study has joined is gone: what waits for Ray's answers would do so for ever."""

import time
from collections.abc import Callable

import ray
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from search.periodic import Periodic

LOOKS_EVERY_S = 5.0
ANSWERS_WITHIN_S = 10
SILENT_S = 40.0  # of the head, which may be starting again; after 60 Ray itself ends the process, without a word


class ClusterWatch(Periodic):
    """Looks whether the head answers and knows the node that the study's own process is on.

    Where the head comes back with its memory (Ray's documentation, "GCS fault tolerance") and this node lives, nothing
    is lost; where it does not, or where Ray has ended on this node, the session cannot go on.

    Args:
        on_lost: told why, from this thread; it does not return.
    """

    def __init__(self, on_lost: Callable[[str], None]):
        super().__init__(LOOKS_EVERY_S)
        here = ray.get_runtime_context()
        self._node, self._address, self._on_lost = here.get_node_id(), here.gcs_address, on_lost
        self._gcs = GcsClient(self._address)
        self._heard = time.monotonic()

    def _look(self) -> None:
        try:
            nodes = self._gcs.get_all_node_info(timeout=ANSWERS_WITHIN_S)
        except Exception as error:  # of several types, as the head is away, starting, or another one
            if time.monotonic() - self._heard > SILENT_S:
                said = " ".join(str(error).split())[:100]
                self._on_lost(f"the cluster's head at {self._address} has not answered for {SILENT_S:.0f} s ({said})")
            return
        self._heard = time.monotonic()
        alive = {one.node_id.hex() for one in nodes.values() if one.state == GcsNodeInfo.ALIVE}
        if self._node not in alive:
            self._on_lost("Ray has ended on this machine, or the cluster's head was started anew and knows it no more")
