"""A trial's workers on two machines of a cluster that share no address, and no disk but the storage."""

import json

import pytest

from tests.benchmarks.chaos import MACHINES
from tests.search import studies
from tests.search.cluster.clusters import cluster
from tests.search.cluster.disturbed import write_space
from tests.search.cluster.networks import machines
from tests.search.object_store import object_store

pytestmark = pytest.mark.long


def curves(records):
    """Each trial's epochs, without what tells of the machine."""
    return {
        name: [
            {key: value for key, value in entry.items() if not key.startswith(MACHINES)} for entry in record["history"]
        ]
        for name, record in records.items()
    }


def test_workers_on_two_machines_train_what_two_on_one_do(tmp_path, monkeypatch):
    study = ("--space", write_space(tmp_path, trials=2, epochs=3), "--name", "s", "--workers-per-trial", "2")
    here, disk = tmp_path / "here", tmp_path / "disk"
    here.mkdir()
    assert (ran := studies.run(*study, "--concurrency", "1", cwd=here)).code == 0, ran.err
    alone = {path.parent.name: json.loads(path.read_text()) for path in here.glob("runs/s/trials/*/record.json")}
    assert curves(alone).keys() == {"scratch", "0", "1"}

    with machines(2, disk) as (this, *others), object_store(tmp_path, host=this.address) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        own = {"XDG_CACHE_HOME": str(disk / "cache"), "TMPDIR": str(disk), "RAY_TMPDIR": "/tmp"}  # short, for sockets
        with cluster(tmp_path / "ray", host=this.address, environment=own) as made:
            made.add_nodes(2, 1, others)
            monkeypatch.setenv("XDG_CACHE_HOME", own["XDG_CACHE_HOME"])
            joined = ("--address", made.address, "--storage", store.url)
            assert (ran := studies.run(*study, *joined, cwd=tmp_path)).code == 0, ran.err + ran.out
            assert made.studies_left() == []
        found = store.records("s")
    assert curves(found) == curves(alone)
    assert [entry["teacher/stored"] for entry in found["1"]["history"]] == [1, 1, 1], "all was computed for trial 0"
