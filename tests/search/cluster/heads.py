"""Real Ray clusters with a dashboard and a token, on free ports, so that several may run beside one another."""

import contextlib
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from search.cluster import SLOW_START, STARTS
from tests.ports import free_ports
from tests.search import studies
from tests.search.cluster.clusters import kill_node

TOKEN = "7" * 64
BIN = Path(sys.executable).parent
PORTS = (
    "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port",
    "runtime-env-agent-port", "ray-client-server-port", "node-manager-port", "object-manager-port",
)  # fmt: skip


@dataclass
class Cluster:
    """A cluster that runs: its head's address and process, the dashboard with the job API, the file of its token."""

    address: str
    dashboard: str
    token: Path
    process: int


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What `ray start` has: our python first on the PATH, and the token."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), **more}


@contextlib.contextmanager
def head(folder: Path, cpus: int = 2, **more: str) -> Iterator[Cluster]:
    """A head with its dashboard, which answers.

    Args:
        folder: of its token and log.
        more: of its environment.
    """
    (folder / "token").write_text(TOKEN)
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as ray:  # short: has sockets
        for left in reversed(range(STARTS)):
            ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
            options = ["--head", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", f"--temp-dir={ray}"]
            options += ["--include-dashboard=true", "--dashboard-host=127.0.0.1"]
            options += [f"--{name}={port}" for name, port in ports.items()]
            dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
            with started(options, folder, "head", **more) as process:
                studies.wait_for(lambda one=process, at=dashboard: _up(one, at), "the cluster's start")
                if process.poll() is None:
                    yield Cluster(f"127.0.0.1:{ports['port']}", dashboard, folder / "token", process.pid)
                    return
            log = (folder / "head.log").read_text()
            assert left and SLOW_START in log, log  # a busy machine may be slower than Ray waits


def _up(process: subprocess.Popen, dashboard: str) -> bool:
    """Whether a head takes jobs, or has ended."""
    request = urllib.request.Request(f"{dashboard}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        return process.poll() is not None or urllib.request.urlopen(request, timeout=5).status == 200
    except OSError:
        return False


@contextlib.contextmanager
def started(options: list[str], folder: Path, name: str, prefix: tuple[str, ...] = (), **more: str):
    """A `ray start` that runs until it is left.

    Args:
        prefix: what runs it, as `unshare`.
    """
    command = [*prefix, str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *options]
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(folder, **more))
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_node(process)
