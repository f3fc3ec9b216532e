"""Studies that last, on clusters where others come: another study, and a node that is not as the rest."""

import re
import signal

import pytest
from mlflow import MlflowClient

from tests.search import studies
from tests.search.cluster.clusters import cluster
from tests.search.cluster.disturbed import assert_whole, records, write_space
from tests.search.cluster.networks import Machine, mounted, other_timm
from tests.search.cluster.slow_student import write_slow_space
from tests.search.object_store import object_store
from trainables.remote import working_copy

pytestmark = pytest.mark.long


def lanes_up(folder) -> list[float]:
    """How many lanes the study in that folder has had, one after another."""
    store = f"sqlite:///{folder}/runs/mlflow.db"
    client = MlflowClient(store)
    (parent,) = client.search_runs([client.get_experiment_by_name("s").experiment_id], "tags.role = 'study'")
    found = sorted(client.get_metric_history(parent.info.run_id, "lanes/up"), key=lambda point: point.timestamp)
    return [point.value for point in found]


def start(made, folder, space) -> studies.Followed:
    """Starts a study that wants two lanes."""
    words = ("--space", space, "--name", "s", "--concurrency", "2", "--address", made.address)
    return studies.Followed(studies.start(*words, cwd=folder))


def start_endless(made, folder) -> studies.Followed:
    """Starts one that does not end."""
    return start(made, folder, write_slow_space(folder, naps=4 * [0.2], epochs=5000))


def stop(study, folder) -> None:
    """Stops one that would not end; all it had begun is to go on, and has nothing twice."""
    study.process.send_signal(signal.SIGINT)
    assert study.end().code == 130
    for record in records(folder).values():
        assert [entry["epoch"] for entry in record["history"]] == list(range(1, len(record["history"]) + 1))
        assert record["state"] == "running" and not record["reason"], "what was let go and taken again is no failure"


def test_a_study_lets_a_lane_go_to_another_one_and_has_it_back_after_it(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    with cluster(tmp_path / "ray") as made:
        made.add_nodes(2, cpus=1)
        endless = start_endless(made, first)
        studies.wait_for(lambda: len([one for one in records(first).values() if one["history"]]) == 2, "two lanes")
        ran = start(made, second, write_space(second, trials=2, epochs=6)).end()
        assert ran.code == 0, ran.err + ran.out
        assert endless.process.poll() is None, endless.out
        assert max(lanes_up(second)) == 1, "the other one keeps its share"
        studies.wait_for(lambda: 1 in lanes_up(first) and lanes_up(first)[-1] == 2, "the second lane's return")
        stop(endless, first)
        assert made.studies_left() == []
    assert_whole(second, trials=2, epochs=6)


def test_a_node_that_joins_with_other_packages_gets_no_lane_and_is_named(tmp_path):
    strange = Machine("127.0.0.1", mounted(other_timm(tmp_path)))
    with cluster(tmp_path / "ray") as made:
        made.add_nodes(1, cpus=1)
        endless = start_endless(made, tmp_path)
        studies.wait_for(lambda: records(tmp_path).get("scratch", {}).get("history"), "an epoch")
        made.add_node(1, strange)
        studies.wait_for(lambda: "has timm 0.4.12, this study's driver" in endless.out, "its name")
        assert len(made.node_ids()) == 2 and max(lanes_up(tmp_path)) == 1
        made.add_node(1)
        studies.wait_for(lambda: lanes_up(tmp_path)[-1] == 2, "a second lane, on a node that is as the first")
        stop(endless, tmp_path)
        assert made.studies_left() == []


def test_a_node_whose_disk_is_full_gets_no_lane_and_costs_no_trial(tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    cramped = Machine("127.0.0.1", mounted(f"mount -t tmpfs -o size=1m none {small}"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with object_store(tmp_path) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        with cluster(tmp_path / "ray", environment={"TMPDIR": str(small), "RAY_TMPDIR": "/tmp"}) as made:
            made.add_nodes(1, cpus=1, machines=[cramped])
            words = ("--space", write_space(tmp_path, trials=2, epochs=3), "--name", "s", "--storage", store.url)
            words += ("--address", made.address, "--concurrency", "3")
            study = studies.Followed(studies.start(*words, cwd=tmp_path))
            studies.wait_for(
                lambda: study.process.poll() is not None or "has no room for what" in study.out, "its name"
            )
            assert study.process.poll() is None, study.end()
            made.add_node(cpus=1)
            ran = study.end()
            assert ran.code == 0, ran.err + ran.out
            assert re.search(r"disk: node .* it gets no lane for 10 minutes", ran.out), ran.out
            assert made.studies_left() == []
    (tmp_path / "runs").symlink_to(working_copy(store.url))
    assert_whole(tmp_path, trials=2, epochs=3)
