"""Why a worker's process died, as far as Ray knows: asked by the broker, which must know whose fault it was."""

from typing import Any

from search.broker import NO_FAULT


def why_died(worker: dict[str, Any]) -> str | None:
    """Says why a worker's process died; `NO_FAULT` where its node is gone, None where nobody knows.

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
        return f"its worker was killed for want of memory: {_first_line(cause.oom_context.error_message)}"
    died = cause.actor_died_error_context
    if died.reason == died.NODE_DIED:
        return NO_FAULT
    return None


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
