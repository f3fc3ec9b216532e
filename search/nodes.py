"""What can be wrong with a cluster that a study joins: its nodes' storage and their versions."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from search.cluster import start_ray
from search.settings import Settings
from trainables.errors import InputError, one_line

PACKAGES = ("ray", "torch", "timm", "optuna", "mlflow")  # whose versions decide what is trained and how it is told
ANSWER_S = 120.0  # how long a node may take to start a process and look
SEEN_S = 10.0  # how long a shared folder may take to show on one machine what another one wrote


class Problem(NamedTuple):
    """What is wrong with a node: its id, empty for all of them, and whether it is sure to be the node's own."""

    node: str
    text: str
    of_the_node: bool = True


def check_nodes(settings: Settings) -> None:
    """Joins the cluster at `address` and looks at it from each of its nodes; what has room there, `placement` knows.

    Raises:
        InputError: nobody answers, or a node does not see the storage or has other versions.
    """
    start_ray(settings)
    if problems := [problem.text for problem in _looks(_alive(), settings.storage)]:
        raise InputError(problems)


def unfit(node_ids: Iterable[str], storage: str) -> dict[str, str]:
    """Looks at nodes that came while a study runs; one that does not answer, and storage that is away, say nothing.

    Returns:
        By node, what it has otherwise than this process.
    """
    wanted = set(node_ids)
    found: dict[str, str] = {}
    for problem in _looks([node for node in _alive() if node["NodeID"] in wanted], storage):
        if problem.of_the_node:
            found.setdefault(problem.node, problem.text)
    return found


def name_of(node_id: str) -> str:
    """What people know a node by, which may be gone."""
    import ray

    return next((_name(node) for node in ray.nodes() if node["NodeID"] == node_id), node_id)


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


def _looks(alive: list[dict[str, Any]], storage: str) -> Iterator[Problem]:
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
        text = f"storage: {url} cannot be written ({one_line(error)}); give a place that all nodes can write"
        yield Problem("", text, of_the_node=False)
        return
    look, arguments = _look(), (PACKAGES, url, probe, secret, SEEN_S)
    try:
        ours, _ = look(*arguments)
        for node, answer in _ask(look, alive, *arguments):
            name, one = _name(node), node["NodeID"]
            if isinstance(answer, GetTimeoutError):
                text = f"address: node {name} starts no process within {ANSWER_S:.0f} s; look at it, or take it out"
                yield Problem(one, text, of_the_node=False)
            elif isinstance(answer, Exception):
                text = f"address: node {name} runs no task ({one_line(answer)}); look at it, or take it out"
                if one in {node["NodeID"] for node in _alive()}:
                    yield Problem(one, text, of_the_node=False)
            else:
                theirs, problem = answer
                for text in differing(name, theirs, ours):
                    yield Problem(one, text)
                if problem:
                    fix = "give a folder that all nodes share (NFS), or s3://…"
                    text = f"storage: node {name} does not see {url} as it is here ({problem}); {fix}"
                    yield Problem(one, text, of_the_node=look(*arguments)[1] is None)  # or the storage is away
    finally:
        with contextlib.suppress(OSError):
            files.rm(probe)
            if here and not files.ls(folder):
                files.rmdir(folder)


def _look() -> Callable:
    """What a node does, as a function that needs none of our code there: an inner one is sent by value.

    It returns the versions there, of builds (`+cpu`, `+cu130`) only what they are built of, and what is wrong with the
    storage.
    """

    def look(packages: tuple[str, ...], url: str, probe: str, secret: str, limit: float):
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
