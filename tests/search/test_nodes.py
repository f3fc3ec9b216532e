"""What is looked at on the nodes of a cluster that a study joins."""

import subprocess
from pathlib import Path

import pytest

from search.nodes import differing
from tests.ports import free_ports
from tests.search import studies
from tests.search.cluster import heads
from tests.search.cluster.networks import mounted, other_timm


def test_versions_that_differ_name_node_package_and_both():
    ours = {"python": "3.11", "timm": "1.0.31", "ray": "2.60.0"}
    assert differing("a (1.2.3.4)", dict(ours), ours) == []
    assert differing("a (1.2.3.4)", {"python": "3.11", "timm": "1.0.9", "ray": None}, ours) == [
        "versions: node a (1.2.3.4) has timm 1.0.9, this study's driver 1.0.31; install the same on all nodes",
        "versions: node a (1.2.3.4) has ray not at all, this study's driver 2.60.0; install the same on all nodes",
    ]


@pytest.mark.long
def test_a_node_that_lacks_the_storage_or_has_other_versions(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    # A node of this machine with an empty folder where the others have the storage, and with another timm.
    hidden = mounted(f"mount -t tmpfs none {shared}", other_timm(tmp_path))
    with heads.head(tmp_path) as cluster:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token))
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        simulated = ("--space", studies.MAIN_SPACE, "--trials", "2", "--set", "simulate=synthetic", "finalists=0")
        study = (*simulated, "--address", cluster.address, "--storage", str(shared))
        ran = studies.run(*study, "--name", "whole", cwd=tmp_path)
        assert ran.code == 0, ran.err
        assert not [path.name for path in shared.iterdir() if path.name.startswith(".seen")]
        node = [f"--address={cluster.address}", "--num-cpus=1", *_own_ports()]
        with heads.started(node, tmp_path, "node", hidden) as process:
            studies.wait_for(lambda: _nodes(cluster, tmp_path) == 2 or process.poll() is not None, "the node")
            assert process.poll() is None, (tmp_path / "node.log").read_text()
            ran = studies.run(*study, "--name", "torn", cwd=tmp_path)
        assert ran.code == 2, ran.out
        lines = ran.err.splitlines()
        assert len(lines) == 2 and all(line.startswith("error: ") for line in lines), lines
        assert "has timm 0.4.12, this study's driver 1.0." in lines[0]
        assert f"does not see {shared} as it is here" in lines[1] and "give a folder that all nodes share" in lines[1]
        assert not (shared / "torn").exists()
        assert not [path.name for path in shared.iterdir() if path.name.startswith(".seen")]


def _own_ports() -> list[str]:
    names = [name for name in heads.PORTS if name not in ("port", "dashboard-port", "ray-client-server-port")]
    return [f"--{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]


def _nodes(cluster, folder: Path) -> int:
    """How many nodes are alive, as `ray list nodes` tells."""
    command = [str(heads.BIN / "ray"), "list", "nodes", "--address", cluster.dashboard, "--format", "json"]
    ran = subprocess.run(command, env=heads.environment(folder), capture_output=True, text=True, check=False)
    return ran.stdout.count('"ALIVE"')
