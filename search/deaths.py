"""Why a worker's process died, as far as Ray knows: asked by the broker, which must know whose fault it was."""

import re
from typing import Any

from search.broker import NO_FAULT

# Of each process that Ray ended for want of memory, in the message that all of them get.
ENDED = re.compile(r"Selected to kill: \(Actor\((?P<actor>\w+)\).*?actual memory used=(?P<gb>[\d.]+)GB")


def why_died(worker: dict[str, Any]) -> str | None:
    """Says why a trial's workers died; `NO_FAULT` where the node of one or their lane's controller is gone, or another
    process took the memory; None where nobody knows.

    All are asked: the death of one is the others' lost connection.

    Args:
        worker: its `ranks`, of each the `node` and `actor`, Ray's ids.
    """
    import ray
    from ray._private.state import actors

    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    ranks = worker.get("ranks", [])
    if any(rank["node"] not in alive for rank in ranks):
        return NO_FAULT
    causes = {rank["actor"]: actors(rank["actor"]).get("DeathCause") for rank in ranks}
    if any(cause and _no_fault(cause.actor_died_error_context) for cause in causes.values()):
        return NO_FAULT
    memory = [
        why_memory(actor, cause.oom_context.error_message)
        for actor, cause in causes.items()
        if cause and cause.HasField("oom_context")
    ]
    return max(memory, default=None)  # the one that is at fault, where there is one


def _no_fault(died) -> bool:
    return died.reason in (died.NODE_DIED, died.OWNER_DIED)


def why_memory(actor: str, message: str) -> str:
    """What Ray's message says of an actor that it ended for want of memory: it ends the latest first, and several at
    once, of which the largest is at fault (Ray's documentation, "Out-Of-Memory Prevention")."""
    ended = {found["actor"]: float(found["gb"]) for found in ENDED.finditer(message)}
    if ended and ended.get(actor, 0.0) < max(ended.values()):
        return NO_FAULT
    used = f" of {ended[actor]:.1f} GB" if actor in ended else ""
    return f"its worker{used} was killed for want of memory: {_first_line(message)}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
