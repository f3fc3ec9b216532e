"""Studies as jobs of a real cluster: submitted, followed, stopped, resumed and removed as a user does it."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pandas
import psutil
import pytest
from mlflow import MlflowClient

from tests.search import studies
from tests.search.cluster import heads
from tests.search.test_jobs import by_hand

pytestmark = pytest.mark.long

SIMULATED = ("--space", studies.MAIN_SPACE, "--trials", "4", "--set", "finalists=0")
ENDLESS = ("--space", studies.MAIN_SPACE, "--epochs", "9000", "--trials", "2", "--concurrency", "1")
SETS = ("max_images=200", "teacher_recipe.epochs=8", "baselines=scratch", "finalists=0", "scheduler=none")
CURVES = """
def curves(config, params, epochs, seed):
    return [{"val/top1": 50.0 + seed % 7 + epoch / 100} for epoch in range(1, epochs + 1)]
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with heads.head(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def place(tmp_path, cluster, monkeypatch):
    """The submitter's folder, which has the cluster's token."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    return tmp_path


def jobs(*words, cluster, cwd):
    return studies.run(*words, "--address", cluster.dashboard, cwd=cwd, script="jobs")


def state(name, cluster, cwd):
    ran = jobs("list", cluster=cluster, cwd=cwd)
    assert ran.code == 0, ran.err
    rows = [line.split() for line in ran.out.splitlines()]
    return next((row[1] for row in rows if row[0] == name), None)


def submitted(*words, cluster, cwd):
    return studies.run(*words, "--address", cluster.dashboard, "--storage", str(cwd / "shared"), cwd=cwd)


def known_to_ray(cluster):
    """All that Ray tells of jobs, as text."""
    headers = {"Authorization": f"Bearer {heads.TOKEN}"}
    with urllib.request.urlopen(urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers=headers)) as answer:
        return answer.read().decode()


def records(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("trials/*/record.json")}


def test_a_study_goes_on_without_its_submitter_and_is_removed_with_all_it_left(cluster, place, monkeypatch):
    (place / "mycurves.py").write_text(CURVES)
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, "planted-s3cret")
    words = (*SIMULATED, "simulate=mycurves:curves", "--name", "mine")
    ran = submitted(*words, "--detach", cluster=cluster, cwd=place)
    assert ran.code == 0, ran.err
    assert "study mine is job mine-" in ran.out
    assert f"python search/jobs.py logs mine --follow --address {cluster.dashboard}" in ran.out
    kept = known_to_ray(cluster)
    assert "mycurves:curves" in kept and "planted" not in kept and heads.TOKEN not in kept
    again = submitted(*words, "--detach", cluster=cluster, cwd=place)
    assert again.code == 2 and "study 'mine' is " in again.err and "stop that one first" in again.err
    followed = jobs("logs", "mine", "--follow", cluster=cluster, cwd=place)
    assert followed.code == 0 and "ended by: all 4 trials have run" in followed.out
    assert state("mine", cluster, place) == "done"
    status = jobs("status", "mine", cluster=cluster, cwd=place)
    assert "state:   done (job mine-" in status.out and "complete" in status.out and "ended by" in status.out
    table = pandas.read_csv(place / "shared" / "mine" / "trials.csv")
    assert len(table[table.role == "trial"]) == 4
    started = json.loads((place / "shared" / "mine" / "started.json").read_text())
    assert started["flags"]["address"] == "auto"

    near = jobs("status", "mina", cluster=cluster, cwd=place)
    assert near.code == 2 and near.err.endswith("has no study 'mina'; there are mine\n")
    asked = jobs("rm", "mine", cluster=cluster, cwd=place)
    assert asked.code == 2 and "--yes" in asked.err and (place / "shared" / "mine").exists()
    client = MlflowClient(f"sqlite:///{place}/shared/mlflow.db")
    experiment = client.get_experiment_by_name("mine")
    removed = jobs("rm", "mine", "--yes", cluster=cluster, cwd=place)
    assert removed.code == 0, removed.out + removed.err
    assert not (place / "shared" / "mine").exists() and (place / "shared" / "mlflow.db").exists()
    assert client.get_experiment(experiment.experiment_id).lifecycle_stage == "deleted"
    assert client.get_experiment_by_name("mine") is None
    assert state("mine", cluster, place) is None


def test_stop_and_resume_beside_another_study(cluster, place):
    ran = submitted(*ENDLESS, "--set", *SETS, "--name", "long", "--detach", cluster=cluster, cwd=place)
    assert ran.code == 0, ran.err
    folder = place / "shared" / "long"
    other = submitted(*SIMULATED, "simulate=synthetic", "--name", "beside", cluster=cluster, cwd=place)
    assert other.code == 0 and "ended by: all 4 trials have run" in other.out
    studies.wait_for(lambda: any(one["history"] for one in records(folder).values()), "an epoch")
    status = jobs("status", "long", cluster=cluster, cwd=place)
    assert "state:   running" in status.out and "now:" in status.out
    for action in ("resume", "rm"):
        refused = jobs(action, "long", cluster=cluster, cwd=place)
        assert refused.code == 2 and "is running" in refused.err
    stopped = jobs("stop", "long", cluster=cluster, cwd=place)
    assert stopped.code == 0 and "study long is interrupted" in stopped.out, stopped.err
    assert f"python search/jobs.py resume long --address {cluster.dashboard}" in stopped.out
    log = jobs("logs", "long", cluster=cluster, cwd=place).out
    assert "stopping the lanes" in log and "interrupted; go on with" in log and "died" not in log
    before = records(folder)

    resumed = jobs("resume", "long", cluster=cluster, cwd=place)
    assert resumed.code == 0 and "goes on as job long-" in resumed.out, resumed.err

    def further():
        now = records(folder)
        return any(len(now[name]["history"]) > len(one["history"]) for name, one in before.items() if one["history"])

    studies.wait_for(further, "another epoch of the same trial")
    assert state("long", cluster, place) == "running"
    assert jobs("stop", "long", cluster=cluster, cwd=place).code == 0
    for name, one in before.items():
        epochs = [entry["epoch"] for entry in records(folder)[name]["history"]]
        assert epochs == list(range(1, len(epochs) + 1)) and len(epochs) >= len(one["history"])


def test_one_who_follows_may_leave(cluster, place):
    words = (*ENDLESS, "--set", *SETS, "--name", "left", "--storage", str(place / "shared"))
    process = studies.start(*words, "--address", cluster.dashboard, cwd=place)
    follower = studies.Followed(process)
    studies.wait_for(lambda: "starting Ray" in follower.out or process.poll() is not None, "the study's lines")
    process.send_signal(signal.SIGINT)
    ran = follower.end()
    assert ran.code == 130 and "study left goes on as job left-" in ran.out and "jobs.py stop left" in ran.out, ran.err
    assert state("left", cluster, place) == "running"
    assert jobs("stop", "left", cluster=cluster, cwd=place).code == 0


def test_a_study_that_was_submitted_by_hand(cluster, place):
    command = (
        by_hand(cluster.dashboard, "hand", str(place / "shared")) + " --trials 4 --set finalists=0 simulate=synthetic"
    )
    environment = {**os.environ, "PATH": f"{heads.BIN}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(
        ["bash", "-c", command], cwd=studies.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    followed = jobs("logs", "hand", "--follow", cluster=cluster, cwd=place)
    assert "ended by: all 4 trials have run" in followed.out
    assert state("hand", cluster, place) == "done"
    refused = jobs("resume", "hand", cluster=cluster, cwd=place)
    assert refused.code == 2 and "by hand" in refused.err
    assert jobs("rm", "hand", "--yes", cluster=cluster, cwd=place).code == 0
    assert not (place / "shared" / "hand").exists()


def test_what_only_the_cluster_can_refuse_is_refused_there(cluster, place):
    mine = place / "shared" / "taken" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    ran = submitted(*SIMULATED, "simulate=synthetic", "--name", "taken", cluster=cluster, cwd=place)
    said = f"error: --name: study 'taken' exists in {place / 'shared'}"
    assert ran.code == 2 and said in ran.out, ran.out + ran.err
    assert state("taken", cluster, place) == "refused"
    detached = submitted(*SIMULATED, "simulate=synthetic", "--name", "taken", "--detach", cluster=cluster, cwd=place)
    assert detached.code == 2 and said in detached.err, detached.out + detached.err
    resumed = jobs("resume", "taken", cluster=cluster, cwd=place)
    assert resumed.code == 0, "it begins, as there is nothing to go on with: " + resumed.err
    log = jobs("logs", "taken", "--follow", cluster=cluster, cwd=place).out
    assert said in log and "--address auto --resume" not in log
    removed = jobs("rm", "taken", "--yes", cluster=cluster, cwd=place)
    assert removed.code == 0 and "deleted: 3 job(s)" in removed.out and state("taken", cluster, place) is None
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RAY_AUTH_TOKEN": "8" * 64}, "refuses the token; correct it in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN_PATH": "", "HOME": "{place}"}, "asks for a token; put it in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/where"}, "/no/where"),
    ],
)
def test_a_token_that_is_missing_or_wrong(cluster, place, monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(place=place))
    for ran in (
        submitted(*SIMULATED, "simulate=synthetic", "--name", "mine", cluster=cluster, cwd=place),
        jobs("list", cluster=cluster, cwd=place),
    ):
        assert ran.code == 2 and said in ran.err and ran.err.count("\n") == 1, ran.err
    assert not (place / "shared").exists()


def test_nobody_without_the_token_runs_anything(cluster):
    """Ray's own promise, which all of this stands on."""
    code = f"""
import json, urllib.request
body = json.dumps({{"entrypoint": "true"}}).encode()
try:
    urllib.request.urlopen(urllib.request.Request("{cluster.dashboard}/api/jobs/", body, method="POST"))
except urllib.error.HTTPError as error:
    print(error.code)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "401"


def test_a_head_that_vanishes_is_one_line_to_one_who_follows(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    with heads.head(tmp_path) as cluster:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token))
        words = (*ENDLESS, "--set", *SETS, "--name", "lost", "--storage", str(tmp_path / "shared"))
        follower = studies.Followed(studies.start(*words, "--address", cluster.dashboard, cwd=tmp_path))
        studies.wait_for(
            lambda: "starting Ray" in follower.out or follower.process.poll() is not None, "the study's lines"
        )
        for child in psutil.Process(cluster.process).children(recursive=True):
            if any(word.endswith("dashboard/dashboard.py") for word in child.cmdline()):
                child.kill()
        ran = follower.end()
    assert ran.code == 1 and ran.err.startswith("error: the cluster answers no more ("), ran.err
    assert ran.err.endswith("); the study may go on\n") and ran.err.count("\n") == 1
