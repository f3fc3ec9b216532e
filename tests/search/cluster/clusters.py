"""Ray clusters for tests: real ones of several processes on this machine, some with an autoscaler that starts nodes."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import yaml
from ray._private.ray_constants import AGENT_PROCESS_TYPE_DASHBOARD_AGENT, AGENT_PROCESS_TYPE_RUNTIME_ENV_AGENT
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from search.cluster import STARTS
from tests.ports import free_port, listens
from tests.search import studies
from tests.search.cluster.networks import Machine

RAY = str(Path(sys.executable).with_name("ray"))
HEAD = "ray.head.default"  # Ray's provider knows it by that name
NODES = """
import json, sys
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo

nodes = GcsClient(sys.argv[1]).get_all_node_info(timeout=30).values()
print(json.dumps([one.node_id.hex() for one in nodes if one.state == GcsNodeInfo.ALIVE and not one.is_head_node]))
"""
MEMORY = 100 * 2**20  # bytes of a node's object store
HERE = Machine("127.0.0.1")


class Cluster:
    """A head in a process of its own, with or without an autoscaler; nodes are added by hand or by that.

    Args:
        folder: for its files; its processes can be told by it.
        cpus: of the head.
        node_types: what the autoscaler may start, by name: `{"resources": {"CPU": 1}, "max_workers": 2}`; None: none.
        idle_s: after so many seconds a node goes that has nothing to do.
        environment: more of it for all nodes.
        host: the head's address.
    """

    def __init__(
        self,
        folder: Path,
        cpus: int = 0,
        node_types: dict | None = None,
        idle_s: float = 10,
        environment: dict[str, str] | None = None,
        host: str = "127.0.0.1",
    ):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.token = folder / "token"
        self.token.write_text("0" * 64)
        self.environment = {
            **os.environ,
            **(environment or {}),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "OFAKD_TEST": str(folder),
        }
        if node_types is not None:
            # What Ray's own test cluster sets; that one is broken in the wheel and stops all of a machine's Ray.
            self.environment |= {
                "RAY_FAKE_CLUSTER": "1",
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_NODE_TYPE_NAME": HEAD,
                "RAY_enable_autoscaler_v2": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            }
        self.nodes: list[subprocess.Popen] = []
        self._count = itertools.count()
        for left in reversed(range(STARTS)):
            port = free_port()
            self.address = f"{host}:{port}"
            self._command = [
                "start", "--head", "--block", f"--port={port}", f"--node-ip-address={host}", f"--num-cpus={cpus}",
                f"--object-store-memory={MEMORY}", "--include-dashboard=false", "--disable-usage-stats",
            ]  # fmt: skip
            if node_types is not None:
                config = folder / "autoscaling.yaml"
                config.write_text(yaml.safe_dump(_autoscaling(self.address, node_types, idle_s)))
                self._command.append(f"--autoscaling-config={config}")
            self.head = self._ray(*self._command)
            studies.wait_for(lambda: self.head.poll() is not None or self._answers(), "the cluster's start")
            if self.head.poll() is None:
                break
            assert left, self._logs()  # a busy machine may be slower than Ray waits, and another one have the port

    def start_head_anew(self) -> None:
        """Kills the head's processes and starts another one at its address."""
        kill_node(self.head)
        # Ray looks for processes that know the address, as the nodes here do, and takes them for a head: not in there.
        alone = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
        self.head = self._ray(*self._command, prefix=alone)
        studies.wait_for(self._answers, "the new head's start")

    def add_node(self, cpus: int, machine: Machine = HERE) -> subprocess.Popen:
        """Starts a node; its process is `ray start --block`, whose children are the node's own."""
        node = self._ray(
            "start", "--block", f"--address={self.address}", f"--num-cpus={cpus}",
            f"--node-ip-address={machine.address}", f"--object-store-memory={MEMORY}", "--disable-usage-stats",
            prefix=machine.prefix,
        )  # fmt: skip
        self.nodes.append(node)
        return node

    def add_nodes(self, count: int, cpus: int, machines: Sequence[Machine] = (HERE,)) -> None:
        """Starts so many nodes, on these machines by turns, and waits until all have joined.

        One that a busy machine kept out is started again.
        """
        places = {
            self.add_node(cpus, machine): machine for machine in itertools.islice(itertools.cycle(machines), count)
        }

        def joined() -> bool:
            for node in [one for one in places if one.poll() is not None]:
                self.nodes.remove(node)
                machine = places.pop(node)
                places[self.add_node(cpus, machine)] = machine
            return len(self.node_ids()) >= count

        studies.wait_for(joined, f"{count} nodes")

    def node_ids(self) -> list[str]:
        """Of the live nodes but the head, as Ray's commands take them."""
        # A process of its own: Ray takes a token from the environment as it is imported, and keeps it.
        done = subprocess.run(
            [sys.executable, "-c", NODES, self.address],
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout)

    def drain(self, node_id: str, seconds: int) -> None:
        """Tells a node, as a cloud does, that it will be taken away in so many seconds."""
        words = ["--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command = [RAY, "drain-node", "--address", self.address, *words, "--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=120)

    def close(self) -> None:
        """Ends the cluster's processes, and no others; at once, since Ray itself takes half a minute for it."""
        for process in [*self.nodes, self.head]:
            if process.poll() is None:
                kill_node(process)
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def studies_left(self, within: float = 60) -> list[str]:
        """What still runs of studies after so many seconds; what all share stays: ours and Ray's."""
        names = {"ray::IDLE", "ray::Shares", "ray::_AutoscalingCoordinatorActor"}
        names |= {AGENT_PROCESS_TYPE_DASHBOARD_AGENT, AGENT_PROCESS_TYPE_RUNTIME_ENV_AGENT}

        def remaining() -> list[str]:
            found = []
            for process in self._processes():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    words = process.cmdline()
                    ours = words and words[0].startswith("ray::") and words[0].strip().partition(".")[0] not in names
                    if ours or any(word.endswith("search/run.py") for word in words[:2]):
                        found.append(f"{process.pid} {' '.join(words)[:120]}")
            return found

        end = time.monotonic() + within
        while (found := remaining()) and time.monotonic() < end:
            time.sleep(0.5)
        return found

    def _processes(self) -> list[psutil.Process]:
        """What runs of it and of its studies: all have this cluster's folder in their environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                if process.pid != os.getpid() and process.environ().get("OFAKD_TEST") == str(self.folder):
                    found.append(process)
        return found

    def _ray(self, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen:
        with (self.folder / f"{arguments[1].strip('-')}-{next(self._count)}.log").open("w") as log:
            return subprocess.Popen([*prefix, RAY, *arguments], env=self.environment, stdout=log, stderr=log)

    def _logs(self) -> list[str]:
        return [log.read_text() for log in self.folder.glob("head-*.log")]

    def _answers(self) -> bool:
        assert self.head.poll() is None, self._logs()
        host, port = self.address.split(":")
        return listens(host, int(port))


def kill_node(node: subprocess.Popen) -> None:
    """Ends a node as a machine ends that loses its power: all its processes at once."""
    processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    node.wait(60)


@contextlib.contextmanager
def cluster(folder: Path, **options) -> Iterator[Cluster]:
    """A cluster that ends with the block; commands started within it find its token, and are known to be of it."""
    made = Cluster(folder, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(made.token))
        patch.setenv("OFAKD_TEST", str(folder))
        try:
            yield made
        finally:
            made.close()


def _autoscaling(address: str, node_types: dict, idle_s: float) -> dict:
    """The configuration of a cluster whose nodes are processes here.

    Ray's provider for that is named as an external one, since its own type reads a file that the wheel lacks.
    """
    types = {name: {"min_workers": 0, "node_config": {}, **one} for name, one in node_types.items()}
    for one in types.values():
        one["resources"] = {"object_store_memory": MEMORY, **one["resources"]}
    commands = (
        "head_setup_commands", "setup_commands", "worker_setup_commands", "head_start_ray_commands",
        "worker_start_ray_commands", "initialization_commands", "rsync_exclude", "rsync_filter", "cluster_synced_files",
    )  # fmt: skip
    return {
        "cluster_name": "test",
        "max_workers": sum(one["max_workers"] for one in types.values()),
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "use_internal_ips": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}},
            **types,
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in commands},
    }
