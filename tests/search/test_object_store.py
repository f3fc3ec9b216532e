"""Whole studies on an object store: equal to those in a folder, and none the worse for what kills or stops them."""

import json
import os
import signal
import time
from pathlib import Path

import pandas
import pytest
import yaml
from mlflow import MlflowClient

from search.optuna_study import load_study
from search.storage import Storage
from tests.search import studies
from tests.search.object_store import object_store
from tests.search.test_faults import BODY, EPOCHS, FIELDS

pytestmark = pytest.mark.long
CLOCK = ("seconds", "cost/latency_ms")
AWAY_S = 65  # longer than a lease lasts


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store, and machines that reach it: each has an empty disk."""
    folder = tmp_path_factory.mktemp("world")
    with object_store(folder) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        patch.setenv("OFAKD_TEST", str(folder))
        yield World(folder, store, patch)


class World:
    def __init__(self, folder, store, patch):
        self.folder, self.store, self._patch, self._count = folder, store, patch, 0
        self.space = studies.write_space(folder, BODY, [], FIELDS)

    def machine(self):
        """Goes to a new one; its place to be."""
        self._count += 1
        place = self.folder / f"machine{self._count}"
        for kind in ("here", "tmp"):
            (place / kind).mkdir(parents=True)
        self._patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        self._patch.setenv("TMPDIR", str(place / "tmp"))
        self._patch.setenv("RAY_TMPDIR", "/tmp")  # short, for its sockets
        return place / "here"

    def study(self, name, *more):
        storage = ("--storage", self.store.url)
        return ("--space", self.space, "--name", name, *storage, "--concurrency", "1", *more)

    def reached(self, name, trial, epoch):
        """Whether the store has so many epochs of a trial."""
        found = self.store.records(name).get(trial)
        return found is not None and len(found["history"]) >= epoch


SMALL = ("--trials", "2", "--epochs", "3", "--set", "finalists=1", "seeds=2")


@pytest.fixture(scope="module")
def finished(world):
    """A study that one machine has run to its end."""
    place = world.machine()
    ran = studies.run(*world.study("whole", *SMALL), cwd=place)
    assert ran.code == 0, ran.err + ran.out
    return ran


def test_a_study_is_the_same_as_in_a_folder(world, finished):
    assert (
        f"files:  {world.store.url}/whole/" in finished.out
        and "MLflow's database is in the working copy" in finished.out
    )
    kept = world.store.names("whole")
    assert not [name for name in kept if "checkpoint" in name or "partial" in name or "/ray/" in name], kept
    place = world.machine()
    ran = studies.run("--space", world.space, "--name", "whole", "--concurrency", "1", *SMALL, cwd=place)
    assert ran.code == 0, ran.err
    folder = pandas.read_csv(place / "runs" / "whole" / "trials.csv").drop(columns=list(CLOCK))
    (place / "trials.csv").write_bytes(world.store.content("whole/trials.csv"))
    pandas.testing.assert_frame_equal(folder, pandas.read_csv(place / "trials.csv").drop(columns=list(CLOCK)))
    assert not list(place.parent.joinpath("tmp").glob("ofakd-search-*"))  # nodes keep nothing of a trial
    assert studies.left_behind(world.folder) == []


def test_another_machine_exports_reports_trains_and_tells_mlflow(world, finished):
    place, storage = world.machine(), ("--study", "whole", "--storage", world.store.url)
    ran = studies.run(*storage, "--to", "weights", "--out", "out", cwd=place, script="export")
    assert ran.code == 0 and (place / "out" / "model.safetensors").exists(), ran.err
    ran = studies.run(*storage, cwd=place, script="features")
    assert ran.code == 0, ran.err
    assert {"features/whole/cka.json", "features/whole/cka.png"} <= set(world.store.names("features"))
    place = world.machine()
    ran = studies.run(*storage, "--tracking-uri", f"sqlite:///{place}/other.db", cwd=place, script="sync")
    assert ran.code == 0, ran.err
    client = MlflowClient(f"sqlite:///{place}/other.db")
    runs = client.search_runs([client.get_experiment_by_name("whole").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"} and len(runs) == 1 + 3 + 4
    place = world.machine()
    ran = studies.run(*storage, cwd=place, script="report")
    assert ran.code == 0 and b"On the test split" in world.store.content("whole/report.md"), ran.err


def test_another_machine_trains_the_best_in_full(world, finished):
    place, storage = world.machine(), ("--study", "whole", "--storage", world.store.url)
    synced = studies.run(*storage, cwd=place, script="sync")  # its MLflow is new
    assert synced.code == 0, synced.err
    ran = studies.run(*storage, "--epochs", "2", cwd=place, script="train")
    assert ran.code == 0, ran.err
    best = yaml.safe_load(world.store.content("whole/best.yaml"))["trial"]
    delivered = f"whole/delivered/trial-{best}-2-epochs"
    kept = {name.rpartition("/")[2] for name in world.store.names(delivered)}
    assert {"student.safetensors", "config.yaml", "MODEL_CARD.md", "record.json", "log.txt"} <= kept
    assert f"{world.store.url}/{delivered}/student.safetensors" in ran.out


def assert_whole(world, name, trials=3):
    """Every trial complete, every epoch once, in the store, in Optuna and in the last machine's MLflow."""
    found = world.store.records(name)
    assert len(found) == trials + 1
    for record in found.values():
        assert record["state"] == "complete", record["reason"]
        assert [entry["epoch"] for entry in record["history"]] == list(range(1, EPOCHS + 1))
    storage = Storage(world.store.url)
    told = load_study(storage.bring(name) / "optuna.log").get_trials()
    assert [trial.state.name for trial in told] == ["COMPLETE"] * trials
    client = MlflowClient(f"sqlite:///{storage.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    assert len(runs) == trials + 2 and {run.info.status for run in runs} == {"FINISHED"}


def kill(process):
    process.kill()
    process.communicate(timeout=studies.LIMIT_S)


def test_a_study_whose_driver_is_killed_again_and_again_goes_on_elsewhere(world):
    moments = [
        lambda: any(name.endswith("/teacher/checkpoint.pt") for name in world.store.names("killed")),
        lambda: world.reached("killed", "scratch", 2),
        lambda: world.reached("killed", "1", 4),
    ]
    teacher = world.folder / "another_teacher.py"  # the other studies' is in the store, which this one is to make
    teacher.write_text(Path(world.space).read_text().replace('"epochs": 12', '"epochs": 13'))
    study, before = ("killed", "--space", str(teacher)), {}
    for count, moment in enumerate(moments):
        process = studies.start(*world.study(*study, *["--resume"][: bool(count)]), cwd=world.machine())
        studies.wait_for(lambda now=moment, process=process: process.poll() is not None or now(), f"moment {count}")
        assert process.poll() is None, process.communicate()
        kill(process)
        now = world.store.records("killed")
        for trial, record in before.items():  # what was reported once stays
            assert now[trial]["history"][: len(record["history"])] == record["history"]
        before = now
    ran = studies.run(*world.study(*study, "--resume"), cwd=world.machine())
    assert ran.code == 0, ran.err + ran.out
    assert_whole(world, "killed")
    after = world.store.records("killed")
    for trial, record in before.items():
        assert after[trial]["history"][: len(record["history"])] == record["history"]
    assert studies.left_behind(world.folder, within=180) == []


def test_a_store_that_is_away_for_a_while_costs_nothing(world):
    study = studies.Followed(studies.start(*world.study("outage"), cwd=world.machine()))
    studies.wait_for(lambda: world.reached("outage", "0", 2) or study.process.poll() is not None, "trial 0's epoch")
    with world.store.away():
        begun = time.monotonic()
        studies.wait_for(lambda: "does not answer" in study.out, "the note of the outage")
        time.sleep(max(0.0, AWAY_S - (time.monotonic() - begun)))
        assert study.process.poll() is None
    ran = study.end()
    assert ran.code == 0, ran.err + ran.out
    # Of the driver; where a lane waited too, its trial has a line of its own.
    assert ran.out.count("storage: it does not answer (") == ran.out.count("storage: it answers again") == 1, ran.out
    assert_whole(world, "outage")


def test_ctrl_c_leaves_all_in_the_store_and_a_second_session_is_refused(world):
    place = world.machine()
    endless = ("--epochs", "500")  # it is amid its first training when the other one has been refused
    process = studies.start(*world.study("stopped", *endless), cwd=place)
    studies.wait_for(lambda: world.reached("stopped", "scratch", 2) or process.poll() is not None, "an epoch")
    world.machine()
    second = studies.run(*world.study("stopped", "--resume"), cwd=place)
    assert second.code == 2 and "study 'stopped' is being run" in second.err, second.err
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=studies.LIMIT_S)
    assert process.returncode == 130 and f"--storage {world.store.url}" in out, err + out
    assert json.loads(world.store.content("stopped/session.json"))["free"] is True
    assert world.store.names("stopped/trials/scratch/checkpoint.pt")
    assert studies.left_behind(world.folder) == []


def test_two_workers_have_folders_of_their_own(world):
    two = ("--workers-per-trial", "2", "--trials", "1", "--epochs", "2")
    ran = studies.run(*world.study("pair", *two), cwd=world.machine())
    assert ran.code == 0, ran.err + ran.out
    assert {record["state"] for record in world.store.records("pair").values()} == {"complete"}
