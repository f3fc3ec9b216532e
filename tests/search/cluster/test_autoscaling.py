"""Studies on a cluster whose head trains nothing and whose nodes an autoscaler starts and stops."""

import re

import pytest
from mlflow import MlflowClient

from tests.search import studies
from tests.search.cluster.clusters import cluster
from tests.search.cluster.disturbed import assert_whole
from tests.search.cluster.slow_student import write_slow_space

pytestmark = pytest.mark.long

TYPES = {"small": {"resources": {"CPU": 1}, "max_workers": 2}}
NAPS = [0.0, 0.0, 0.0, 0.4]  # seconds a step: the last trial trains on when a node has nothing to do any more
EPOCHS = 10


def test_nodes_come_for_a_studys_trials_and_go_when_there_are_none_for_them(tmp_path):
    with cluster(tmp_path / "ray", node_types=TYPES, idle_s=5) as made:
        arguments = ("--space", write_slow_space(tmp_path, NAPS, EPOCHS), "--name", "s", "--address", made.address)
        refused = studies.run(*arguments, "--set", "cpus_per_worker=2", cwd=tmp_path)
        assert refused.code == 2 and refused.out == "", refused.out
        assert refused.err.startswith("error: --address: a trial needs 2 CPUs, and the autoscaler has no node for it")
        assert not (tmp_path / "runs" / "s").exists() and made.node_ids() == []

        study = studies.Followed(studies.start(*arguments, cwd=tmp_path))
        studies.wait_for(lambda: len(made.node_ids()) == 2, "both nodes")
        studies.wait_for(lambda: len(made.node_ids()) == 1, "one node's end")
        assert study.process.poll() is None, "it goes on with the last trial"
        ran = study.end()
        assert ran.code == 0, ran.err + ran.out
        # Which of the two a lane is seen to wait for depends on how long a node takes.
        assert re.search(r"lane\(s\) wait, .*(the autoscaler is starting \d small|was asked for another one)", ran.out)
        assert "all nodes are taken, the cluster's maximum" in ran.out, "there are four trials and two nodes"
        studies.wait_for(lambda: made.node_ids() == [], "the nodes' end")
    assert_whole(tmp_path, len(NAPS), EPOCHS)
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (parent,) = client.search_runs([client.get_experiment_by_name("s").experiment_id], "tags.role = 'study'")
    assert max(point.value for point in client.get_metric_history(parent.info.run_id, "lanes/up")) == 2
    assert max(point.value for point in client.get_metric_history(parent.info.run_id, "lanes/waiting")) >= 1
    trials = client.search_runs([client.get_experiment_by_name("s").experiment_id], "tags.role != 'study'")
    assert any(run.data.metrics["time/waited_s"] > 0 for run in trials), "there were more trials than nodes"
    assert parent.data.metrics["lanes/waited_s"] > 0 and parent.data.tags["waiting"] == ""
    assert studies.left_behind(tmp_path) == []
