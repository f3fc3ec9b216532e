"""A study on a cluster of a head and two nodes, whose processes are killed, frozen, and taken away with a warning."""

import shutil
import signal
import subprocess

import psutil
import pytest

from tests.ports import free_port, listens
from tests.search import studies
from tests.search.cluster.clusters import cluster, kill_node
from tests.search.cluster.disturbed import assert_whole, records, reported, write_space
from tests.search.cluster.faults import processes

pytestmark = pytest.mark.long


@pytest.fixture
def study(tmp_path):
    """Starts a study on two nodes, and disturbs it: by functions one after another, some epochs between them."""
    with cluster(tmp_path / "ray") as made:
        made.add_nodes(2, cpus=1)

        def run(disturbances, *flags):
            arguments = (
                "--space",
                write_space(tmp_path),
                "--name",
                "s",
                "--address",
                made.address,
                "--concurrency",
                "2",
            )
            running = studies.Followed(studies.start(*arguments, *flags, cwd=tmp_path))
            for disturb in disturbances:
                before = reported(tmp_path)
                studies.wait_for(lambda before=before: reported(tmp_path) >= before + 3, "three more epochs")
                disturb(made)
            ran = running.end()
            assert ran.code == 0, ran.err + ran.out
            return ran.out

        yield run
        assert made.studies_left() == []


def kill(kind):
    def disturb(made):
        found = studies.wait_for(lambda: processes(made.folder, kind), f"a {kind}")
        found[0].kill()

    return disturb


def test_each_process_of_a_study_may_be_killed(study, tmp_path):
    study([kill(kind) for kind in ("worker", "proxy", "broker", "lane")])
    assert_whole(tmp_path)


def test_a_node_is_lost_another_is_taken_away_with_a_warning_and_one_is_told_to_end(study, tmp_path):
    def lose(made):
        before = set(made.node_ids())
        kill_node(made.nodes.pop(0))
        made.add_node(1)
        studies.wait_for(lambda: before - set(made.node_ids()), "Ray's notice")  # or the warning may go to the dead

    def warn(made):
        made.drain(made.node_ids()[0], 60)
        made.add_node(1)

    def end(made):  # as Kubernetes a pod; Ray then drains the node by itself
        worker = studies.wait_for(lambda: processes(made.folder, "worker"), "a worker")[0]
        node = next(one for one in made.nodes if worker in psutil.Process(one.pid).children(recursive=True))
        node.terminate()
        made.nodes.remove(node)
        made.add_node(1)

    study([lose, warn, end])
    assert_whole(tmp_path)
    log = "".join(path.read_text() for path in (tmp_path / "runs" / "s" / "trials").glob("*/log.txt"))
    assert log.count("its machine is about to go") >= 2 and log.count("goes on after step") >= 2


def test_a_worker_that_hangs_is_ended_and_its_trial_goes_on(study, tmp_path):
    def freeze(made):
        processes(made.folder, "worker")[0].send_signal(signal.SIGSTOP)

    out = study([freeze], "--set", "hang_factor=3", "hang_min_s=30")
    assert_whole(tmp_path)
    assert "it hung: no report for" in out
    assert all(record["state"] == "complete" for record in records(tmp_path).values())


@pytest.fixture
def redis(tmp_path):
    """What a head's environment has to keep its memory in a Redis server."""
    if not (program := shutil.which("redis-server")):
        pytest.skip("Redis is not installed; apt-get install redis-server")
    port = free_port()
    server = subprocess.Popen([program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], cwd=tmp_path)
    studies.wait_for(lambda: listens("127.0.0.1", port), "Redis' start")
    yield {"RAY_REDIS_ADDRESS": f"127.0.0.1:{port}", "RAY_external_storage_namespace": "test"}
    server.terminate()
    server.wait()


def test_a_lost_head_ends_the_session_in_one_line_and_the_nodes_serve_the_next(tmp_path, redis):
    with cluster(tmp_path / "ray", environment=redis) as made:
        made.add_nodes(2, cpus=1)
        size = {"trials": 2, "epochs": 8}
        study = ("--space", write_space(tmp_path, **size), "--name", "s", "--address", made.address)
        running = studies.Followed(studies.start(*study, cwd=tmp_path))
        studies.wait_for(lambda: reported(tmp_path) >= 3, "three epochs")
        nodes = set(made.node_ids())
        made.start_head_anew()
        ran = running.end()
        assert ran.code == 1 and ran.err.count("\n") == 1, ran.err
        assert ran.err.startswith("error: Ray has ended on this machine, or the cluster's head was started anew")
        before = records(tmp_path)
        assert set(made.node_ids()) == nodes, "these are the same, and were not started anew"
        ran = studies.run(*study, "--resume", cwd=tmp_path)
        assert ran.code == 0, ran.err + ran.out
        assert made.studies_left() == []
    assert_whole(tmp_path, **size)
    for name, record in before.items():
        assert records(tmp_path)[name]["history"][: len(record["history"])] == record["history"]
