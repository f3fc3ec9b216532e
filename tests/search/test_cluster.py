"""Studies on a Ray cluster that runs already, in the background, within a time budget, and from another's best."""

import http.server
import json
import os
import threading

import pandas
import pytest
import yaml

from search.cluster import start_ray
from search.settings import Settings
from tests.search import studies
from tests.search.cluster.clusters import cluster
from trainables.errors import InputError

SMOKE = ("--space", studies.MAIN_SPACE, "--smoke")


@pytest.fixture
def place(tmp_path):
    """A folder of its own whose study's processes can be told from others'."""
    os.environ["OFAKD_TEST"] = str(tmp_path)
    return tmp_path


def states(folder, name="s"):
    table = pandas.read_csv(folder / "runs" / name / "trials.csv")
    return dict(zip(table.trial_id.astype(str), table.state, strict=True))


@pytest.mark.long
def test_a_study_joins_a_running_cluster_and_leaves_it_running(place):
    with cluster(place / "ray", cpus=2) as made:
        for name in ("s", "again"):
            ran = studies.run(*SMOKE, "--name", name, "--address", made.address, cwd=place)
            assert ran.code == 0, ran.err + ran.out
            assert set(states(place, name).values()) == {"complete"}


@pytest.mark.long
def test_a_detached_study_goes_on_without_its_terminal(place):
    ran = studies.run(*SMOKE, "--name", "s", "--detach", cwd=place)
    assert ran.code == 0, ran.err
    assert "tail -f runs/s/console.log" in ran.out and "kill -INT" in ran.out
    log = place / "runs" / "s" / "console.log"
    studies.wait_for(lambda: "export the best" in log.read_text(), "the study's end")
    assert set(states(place).values()) == {"complete"}
    assert studies.left_behind(place) == []


@pytest.mark.long
def test_a_time_budget_ends_the_search_and_the_best_starts_the_next_one_warm(place):
    endless = ("--space", studies.MAIN_SPACE, "--name", "s", "--epochs", "9000", "--set", "max_images=200")
    ran = studies.run(
        *endless, "teacher_recipe.epochs=8", "baselines=scratch", "finalists=0", "--time-budget", "100", cwd=place
    )
    assert ran.code == 1, "no trial came to its end"
    assert "No trial completed" in ran.out
    ended = states(place)
    assert set(ended.values()) == {"pruned"} and len(ended) >= 2
    table = pandas.read_csv(place / "runs" / "s" / "trials.csv")
    assert table.reason.str.startswith("stopped by the time budget").all()
    ran = studies.run(*SMOKE, "--name", "t", "--warm-start", "s", cwd=place)
    assert ran.code == 2 and "study 's' has no complete trial" in ran.err

    ran = studies.run(*SMOKE, "--name", "u", "--set", "search.eps=1.7..1.8", "sampler=random", "finalists=0", cwd=place)
    assert ran.code == 0, ran.err + ran.out
    best = yaml.safe_load((place / "runs" / "u" / "best.yaml").read_text())["searched"]
    ran = studies.run(*SMOKE, "--name", "w", "--trials", "1", "--warm-start", "u", "--set", "finalists=0", cwd=place)
    assert ran.code == 0, ran.err + ran.out
    first = json.loads((place / "runs" / "w" / "trials" / "0" / "record.json").read_text())
    assert first["params"] == best
    assert studies.left_behind(place) == []


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:1", "localhost:x", "http://127.0.0.1:1"])
def test_an_address_where_no_cluster_is_is_told_at_once(address):
    settings = Settings(name="n", space="s", teacher="a", student="b", address=address)
    with pytest.raises(InputError, match=r"^--address: "):
        start_ray(settings)


@pytest.mark.long  # Ray's client tries for some fifteen seconds
def test_what_answers_there_and_is_no_head_is_told(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        ran = studies.run("--space", studies.MAIN_SPACE, "--address", address, cwd=tmp_path)
        server.shutdown()
    assert ran.code == 2 and ran.err.startswith(f"error: --address: what answers at {address} "), ran.err
    assert "is no Ray cluster's head; give HOST:PORT of one" in ran.err and ran.err.count("\n") == 1


def test_a_slow_start_of_ray_is_tried_again_and_other_trouble_is_not(monkeypatch):
    import ray

    from search import cluster as starting

    tries = []

    def init(problems):
        def started(**options):
            tries.append(options)
            if len(tries) <= len(problems):
                raise Exception(problems[len(tries) - 1])

        return started

    slow = "The current node timed out during startup."
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", init([slow, slow]))
    starting._start_here(num_cpus=1)
    assert len(tries) == 3 and tries[-1] == {"address": "local", "num_cpus": 1}
    for problems, count in (([slow] * 9, starting.STARTS), (["no space left"], 1)):
        tries.clear()
        monkeypatch.setattr(ray, "init", init(problems))
        with pytest.raises(Exception, match=problems[0]):
            starting._start_here(num_cpus=1)
        assert len(tries) == count
