"""What can be wrong with a cluster that a study joins: its nodes' storage and their versions."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from search.cluster import start_ray
from search.settings import Settings
from trainables.errors import InputError, one_line

PACKAGES = ("ray", "torch", "timm", "optuna", "mlflow")  # whose versions decide what is trained and how it is told
ANSWER_S = 120.0  # how long a node may take to start a process and look
SEEN_S = 10.0  # how long a shared folder may take to show on one machine what another one wrote


def check_nodes(settings: Settings) -> None:
    """Joins the cluster at `address` and looks at it from each of its nodes; what has room there, `placement` knows.

    Raises:
        InputError: nobody answers, or a node does not see the storage or has other versions.
    """
    start_ray(settings)
    if problems := [*_looks(_alive(), settings.storage)]:
        raise InputError(problems)


def other_versions(node_ids: Iterable[str]) -> dict[str, str]:
    """Nodes that have not the versions that this process has, as those may that come while a study runs.

    Args:
        node_ids: whom to ask; one that does not answer has said nothing.

    Returns:
        By node, what it has otherwise.
    """
    wanted, look = set(node_ids), _look()
    ours, _ = look(PACKAGES)
    found = {}
    for node, answer in _ask(look, [node for node in _alive() if node["NodeID"] in wanted], PACKAGES):
        if not isinstance(answer, Exception) and (lines := differing(_name(node), answer[0], ours)):
            found[node["NodeID"]] = "; ".join(lines)
    return found


def differing(node: str, theirs: dict[str, str | None], ours: dict[str, str | None]) -> list[str]:
    """One line for each package that a node has otherwise than this process; None is a package that is missing."""
    return [
        f"versions: node {node} has {name} {theirs.get(name) or 'not at all'}, this study's driver {version}; install "
        "the same on all nodes"
        for name, version in ours.items()
        if theirs.get(name) != version
    ]


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _ask(look: Callable, nodes: list[dict[str, Any]], *arguments: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Calls a function on nodes; gives each of these with what it returned, or what kept it from that."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(look)
    asked = {
        node["NodeID"]: remote.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(*arguments)
        for node in nodes
    }
    for node in nodes:
        try:
            yield node, ray.get(asked[node["NodeID"]], timeout=ANSWER_S)
        except ray.exceptions.RayError as error:
            yield node, error


def _looks(alive: list[dict[str, Any]], storage: str) -> Iterator[str]:
    """What each node sees otherwise than this process; one that has left meanwhile is none of them."""
    import fsspec
    from ray.exceptions import GetTimeoutError

    url = storage if "://" in storage else os.path.abspath(storage)
    files, folder = fsspec.core.url_to_fs(url)
    probe, secret = f"{folder.rstrip('/')}/.seen-{secrets.token_hex(8)}", secrets.token_hex(8)
    here = not files.exists(folder)  # then it is of this call
    try:
        files.makedirs(folder, exist_ok=True)
        files.pipe_file(probe, secret.encode())
    except Exception as error:  # each file system has its own
        yield f"storage: {url} cannot be written ({one_line(error)}); give a place that all nodes can write"
        return
    look, arguments = _look(), (PACKAGES, url, probe, secret, SEEN_S)
    try:
        ours, _ = look(*arguments)
        for node, answer in _ask(look, alive, *arguments):
            if isinstance(answer, GetTimeoutError):
                yield f"address: node {_name(node)} starts no process in {ANSWER_S:.0f} s; look at it, or take it out"
            elif isinstance(answer, Exception):
                if node["NodeID"] in {one["NodeID"] for one in _alive()}:
                    said = one_line(answer)
                    yield f"address: node {_name(node)} runs no task ({said}); look at it, or take it out"
            else:
                theirs, problem = answer
                yield from differing(_name(node), theirs, ours)
                if problem:
                    fix = "give a folder that all nodes share (NFS), or s3://…"
                    yield f"storage: node {_name(node)} does not see {url} as it is here ({problem}); {fix}"
    finally:
        with contextlib.suppress(OSError):
            files.rm(probe)
            if here and not files.ls(folder):
                files.rmdir(folder)


def _look() -> Callable:
    """What a node does, as a function that needs none of our code there: an inner one is sent by value.

    It returns the versions there, of builds (`+cpu`, `+cu130`) only what they are built of, and what is wrong with the
    storage, where that is to be looked at.
    """

    def look(packages: tuple[str, ...], url: str = "", probe: str = "", secret: str = "", limit: float = 0.0):
        import os
        import sys
        import time
        from importlib import metadata

        found = {"python": ".".join(map(str, sys.version_info[:2]))}
        for name in packages:
            try:
                found[name] = metadata.version(name).partition("+")[0]
            except metadata.PackageNotFoundError:
                found[name] = None
        if not url:
            return found, None
        try:
            import fsspec

            files, _ = fsspec.core.url_to_fs(url)
            deadline = time.monotonic() + limit
            while not files.exists(probe) and time.monotonic() < deadline:
                time.sleep(0.5)
                files.invalidate_cache()
            if files.cat_file(probe).decode() != secret:
                return found, "another file is in its place"
            own = f"{probe}-{os.uname().nodename}-{os.getpid()}"
            files.pipe_file(own, b"")
            files.rm(own)
        except Exception as error:
            return found, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return found, None

    return look
