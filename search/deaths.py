"""Why a worker's process died, as far as Ray knows: asked by the broker, which must know whose fault it was."""

import re
from typing import Any

from search.broker import NO_FAULT

# Of each process that Ray ended for want of memory, in the message that all of them get.
ENDED = re.compile(r"Selected to kill: \(Actor\((?P<actor>\w+)\).*?actual memory used=(?P<gb>[\d.]+)GB")


def why_died(worker: dict[str, Any]) -> str | None:
    """Says why a worker's process died; `NO_FAULT` where its node is gone or another process took the memory, None
    where nobody knows.

    Args:
        worker: its `node` and `actor`, Ray's ids.
    """
    import ray
    from ray._private.state import actors

    nodes = {node["NodeID"]: node["Alive"] for node in ray.nodes()}
    if worker.get("node") and not nodes.get(worker["node"], False):
        return NO_FAULT
    cause = actors(worker["actor"]).get("DeathCause") if worker.get("actor") else None
    if cause is None:
        return None
    if cause.HasField("oom_context"):
        return why_memory(worker["actor"], cause.oom_context.error_message)
    died = cause.actor_died_error_context
    if died.reason == died.NODE_DIED:
        return NO_FAULT
    return None


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
