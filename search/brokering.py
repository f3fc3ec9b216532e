"""The broker's actor: on the driver's own node, started again where it dies."""

import secrets
from pathlib import Path


def start_broker(journal: Path):
    """Starts a study's broker and returns its actor's handle.

    Ray starts it again where its process dies and repeats the calls that were not answered; it takes up what is in its
    journal (Ray's documentation, "Actor Fault Tolerance").

    Args:
        journal: the file for that, on this machine; an earlier session's is removed.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from search.broker import Broker
    from search.deaths import why_died

    journal.unlink(missing_ok=True)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": 1000, "max_restarts": -1, "max_task_retries": -1}
    return (
        ray.remote(Broker)
        .options(scheduling_strategy=here, **options)
        .remote(journal, why_died, secrets.token_bytes(32))
    )
