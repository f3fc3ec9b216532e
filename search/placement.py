"""Where a lane may run in a Ray cluster, and why it does not yet: what the nodes have, and what the autoscaler says."""

import time
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any

from search.settings import Settings
from trainables.errors import InputError

PROBE_S = 60.0  # an autoscaler that neither begins a node nor refuses within this has not been asked in vain
UNKNOWN = 16  # lanes, where nobody knows how large the cluster may grow and --concurrency was not given
Resources = dict[str, float]


@dataclass(frozen=True)
class ClusterNow:
    """What Ray knows of a cluster at a moment.

    Attributes:
        nodes: what each live node has in all.
        free: what is left of each.
        autoscaler: whether one is at work.
        starting: how many nodes of each type are on their way.
        failed: why the latest node of each type could not be had.
        infeasible: requests of several bundles that no node type fits, as the autoscaler says.
    """

    nodes: list[Resources]
    free: list[Resources] = field(default_factory=list)
    autoscaler: bool = False
    starting: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    infeasible: list[list[Resources]] = field(default_factory=list)


def bundles(settings: Settings) -> list[Resources]:
    """What one lane asks for, worker by worker."""
    gpus = settings.gpus_per_lane / settings.workers_per_trial
    one = {"CPU": float(settings.cpus_per_worker)} | ({"GPU": gpus} if gpus else {})
    return [dict(one) for _ in range(settings.workers_per_trial)]


def look(without: Container[str] = ()) -> ClusterNow:
    """Asks the cluster that this process has joined.

    Args:
        without: nodes, by their ids, that are as good as not there.

    Source: Ray's autoscaler state, as `ray status` reads it (ray.autoscaler.v2.sdk, without its parser, which leaves
    out what is infeasible).
    """
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DEAD, DRAINING, GetClusterStatusReply

    address = ray.get_runtime_context().gcs_address
    reply = GetClusterStatusReply.FromString(GcsClient(address).get_cluster_status(timeout_s=10))
    scaling, now = reply.autoscaling_state, reply.cluster_resource_state
    live = [
        node for node in now.node_states if node.status not in (DEAD, DRAINING) and node.node_id.hex() not in without
    ]
    if not scaling.autoscaler_state_version and (older := _older_autoscaler()):
        starting, failed = older
        return ClusterNow([dict(node.total_resources) for node in live], _free(live), True, starting, failed)
    starting: dict[str, int] = {}
    for request in scaling.pending_instance_requests:
        starting[request.ray_node_type_name] = starting.get(request.ray_node_type_name, 0) + request.count
    for instance in scaling.pending_instances:
        starting[instance.ray_node_type_name] = starting.get(instance.ray_node_type_name, 0) + 1
    failed = {request.ray_node_type_name: request.reason for request in scaling.failed_instance_requests}
    infeasible = [
        [dict(request.resources_bundle) for request in gang.requests]
        for gang in scaling.infeasible_gang_resource_requests
    ]
    named = _named(node.ray_node_type_name for node in live)
    autoscaler = bool(scaling.autoscaler_state_version) and (named or bool(starting or failed))
    return ClusterNow(
        [dict(node.total_resources) for node in live], _free(live), autoscaler, starting, failed, infeasible
    )


def fits(wanted: list[Resources], nodes: list[Resources]) -> bool:
    """Whether the bundles find room on nodes, each bundle on one of them; the largest first, on the fullest that do."""
    left = [dict(node) for node in nodes]
    for bundle in sorted(wanted, key=lambda one: (one.get("GPU", 0.0), one.get("CPU", 0.0)), reverse=True):
        able = [node for node in left if all(node.get(name, 0.0) >= amount for name, amount in bundle.items())]
        if not able:
            return False
        node = min(able, key=lambda one: (one.get("GPU", 0.0), one.get("CPU", 0.0)))
        for name, amount in bundle.items():
            node[name] -= amount
    return True


def how_many(wanted: list[Resources], nodes: list[Resources]) -> int:
    """How many lanes of such bundles find room side by side."""
    count = 0
    while fits(wanted * (count + 1), nodes):
        count += 1
    return count


def why_waiting(wanted: list[Resources], now: ClusterNow) -> str:
    """Why a lane has no place yet, in words."""
    if any(alike(wanted, request) for request in now.infeasible):  # what cannot be had now, for whatever reason
        known = fits(wanted, now.nodes)
        return "all nodes are taken, the cluster's maximum" if known else f"no node type has {in_words(wanted)}"
    if now.starting:
        types = ", ".join(f"{count} {name}" for name, count in sorted(now.starting.items()))
        return f"the autoscaler is starting {types}"
    if now.failed:
        name, reason = next(iter(now.failed.items()))
        return f"the autoscaler could not start {name} ({reason or 'no reason given'}) and tries again"
    if fits(wanted, now.free):
        return "its workers are being placed"
    if now.autoscaler:
        return "all nodes are taken; the autoscaler was asked for another one"
    if fits(wanted, now.nodes):
        return "all nodes are taken, and the cluster has no autoscaler"
    return f"no node has {in_words(wanted)} ({_largest(now.nodes)}), and the cluster has no autoscaler"


def check_fits(settings: Settings) -> None:
    """Refuses a study none of whose trials could ever be placed in the cluster that this process has joined.

    Where the nodes that are there do not do, the autoscaler is asked for one lane's place, which the study needs.

    Raises:
        InputError: no node, and none that may come, has room for a trial's workers.
    """
    wanted, now = bundles(settings), look()
    if fits(wanted, now.nodes):
        return
    asked = in_words(wanted)
    advice = "lower --workers-per-trial, --gpus-per-trial or cpus_per_worker, or add nodes that have it"
    if not now.autoscaler:
        raise InputError(
            f"--address: a trial needs {asked}, and no node of the cluster has that ({_largest(now.nodes)}); {advice}"
        )
    from ray.util.placement_group import placement_group, remove_placement_group

    place = placement_group(wanted)
    try:
        deadline = time.monotonic() + PROBE_S
        while not place.wait(1) and time.monotonic() < deadline:
            now = look()
            if any(alike(wanted, request) for request in now.infeasible):
                raise InputError(f"--address: a trial needs {asked}, and the autoscaler has no node for it; {advice}")
            if now.starting:
                return
    finally:
        remove_placement_group(place)


def most_lanes(settings: Settings) -> int:
    """How many lanes may stand side by side: as many as have room, or `UNKNOWN` where an autoscaler brings more nodes,
    which tells nobody how many."""
    now = look()
    room = how_many(bundles(settings), now.nodes)
    return max(room, UNKNOWN) if now.autoscaler else room


def alike(one: list[Resources], other: list[Resources]) -> bool:
    """Whether two requests ask for the same; Ray adds names of its own to placed ones."""
    return sorted(map(_own, one), key=str) == sorted(map(_own, other), key=str)


def in_words(wanted: list[Resources]) -> str:
    """A lane's bundles, as a person says them."""
    one = " and ".join(f"{amount:g} {name}{'s' * (amount != 1)}" for name, amount in wanted[0].items() if amount)
    return one if len(wanted) == 1 else f"{len(wanted)} workers of {one} each"


def _named(node_types: Iterable[str]) -> bool:
    """Whether an autoscaler made any of these nodes: Ray's observer, where there is none, calls types by the nodes."""
    return any(name and not name.startswith("node_") for name in node_types)


def _own(bundle: Resources) -> list[tuple[str, float]]:
    return sorted((name, float(amount)) for name, amount in bundle.items() if name in ("CPU", "GPU"))


def _largest(nodes: list[Resources]) -> str:
    if not nodes:
        return "there is none"
    best = max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)))
    return f"the largest has {best.get('CPU', 0.0):g} CPUs and {best.get('GPU', 0.0):g} GPUs"


def _free(nodes: list[Any]) -> list[Resources]:
    return [dict(node.available_resources) for node in nodes]


def _older_autoscaler() -> tuple[dict[str, int], dict[str, str]] | None:
    """What the first version of Ray's autoscaler tells: nodes on their way by type, and why nodes failed; None where
    there is none."""
    import json

    from ray.experimental.internal_kv import _internal_kv_get

    try:
        report = json.loads(_internal_kv_get(b"__autoscaling_status") or b"{}").get("autoscaler_report")
    except ValueError:
        return None
    if not report or not _named((report.get("node_type_mapping") or {}).values()):
        return None
    starting = {name: int(count) for name, count in (report.get("pending_launches") or {}).items()}
    for _, name, _ in report.get("pending_nodes") or []:
        starting[name] = starting.get(name, 0) + 1
    known = (report.get("node_availability_summary") or {}).get("node_availabilities") or {}
    failed = {
        name: (one.get("unavailable_node_information") or {}).get("description", "")
        for name, one in known.items()
        if not one.get("is_available", True)
    }
    return starting, failed
