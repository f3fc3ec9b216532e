"""Real studies that are disturbed: killed workers, Ctrl-C, a killed driver; and several workers a trial."""

import json
import os
import signal

import pandas
import psutil
import pytest
from mlflow import MlflowClient

from tests.search import studies

pytestmark = pytest.mark.long

BODY = 'return {"stages": [3, 4], "eps": trial.suggest_float("eps", 1.0, 2.0)}'
EPOCHS = 12
FIELDS = (
    f"trials=3, epochs={EPOCHS}, scheduler='none', labels_per_class=60, student='mixer_nano', student_kwargs={{}}, "
    "holdout=0.5"
)


@pytest.fixture
def place(tmp_path):
    """A folder of its own whose study's processes can be told from others'."""
    os.environ["OFAKD_TEST"] = str(tmp_path)
    return tmp_path


def space(folder):
    return studies.write_space(folder, BODY, [], FIELDS)


def records(folder, name="s"):
    found = {}
    for path in (folder / "runs" / name / "trials").glob("*/record.json"):
        record = json.loads(path.read_text())
        found[record["trial_id"]] = record
    return found


def running_epoch(folder, trial_id, epoch):
    """Whether a trial is amid its training, this epoch reported."""
    record = records(folder).get(trial_id)
    return record and record["state"] == "running" and len(record["history"]) >= epoch


def assert_whole(folder, trials=3):
    """Every trial complete, every epoch once, and MLflow the same."""
    found = records(folder)
    assert len(found) == trials + 1
    for record in found.values():
        assert record["state"] == "complete", record["reason"]
        assert [entry["epoch"] for entry in record["history"]] == list(range(1, EPOCHS + 1))
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    children = {run.data.tags["trial_id"]: run for run in runs if run.data.tags["role"] != "study"}
    assert len(runs) == trials + 2 and len(children) == trials + 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    for trial_id, run in children.items():
        logged = sorted(
            (metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "val/top1")
        )
        assert logged == [(entry["epoch"], entry["val/top1"]) for entry in found[trial_id]["history"]]
    assert pandas.read_csv(folder / "runs" / "s" / "trials.csv").trial_id.is_unique


def worker(folder) -> psutil.Process:
    """A lane's worker process."""
    for process in psutil.process_iter():
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()) and process.environ().get("OFAKD_TEST") == str(folder):
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    raise AssertionError("no worker found")


def finished(process) -> str:
    out, err = process.communicate(timeout=studies.LIMIT_S)
    assert process.returncode == 0, err + out
    return out


def test_ctrl_c_stops_cleanly_and_the_study_goes_on_later(place):
    arguments = ("--space", space(place), "--name", "s", "--concurrency", "1")
    process = studies.start(*arguments, cwd=place)
    studies.wait_for(lambda: running_epoch(place, "1", 3), "trial 1's third epoch")
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    out, err = process.communicate(timeout=studies.LIMIT_S)
    assert process.returncode == 130, err + out
    assert "--name s --resume" in out and "Traceback" not in out + err
    assert studies.left_behind(place) == []
    before = records(place)
    assert before["scratch"]["state"] == before["0"]["state"] == "complete"
    assert before["1"]["state"] == "running"
    finished(studies.start(*arguments, "--resume", cwd=place))
    assert_whole(place)
    reached = len(before["1"]["history"])
    assert records(place)["1"]["history"][:reached] == before["1"]["history"]  # it went on, it did not begin again


def test_ctrl_c_before_the_teacher_stands(place):
    process = studies.start("--space", space(place), "--name", "s", cwd=place)
    log = place / "runs" / "s" / "run.log"
    studies.wait_for(log.exists, "the session")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=studies.LIMIT_S)
    assert process.returncode == 130, err + out
    assert studies.left_behind(place) == []


def test_a_killed_driver_leaves_no_process_and_nothing_is_lost(place):
    arguments = ("--space", space(place), "--name", "s", "--concurrency", "1")
    process = studies.start(*arguments, cwd=place)
    studies.wait_for(lambda: running_epoch(place, "1", 3), "trial 1's third epoch")
    process.kill()
    process.communicate(timeout=studies.LIMIT_S)
    assert studies.left_behind(place, within=180) == []  # Ray's own agents notice after a minute
    before = records(place)
    finished(studies.start(*arguments, "--resume", cwd=place))
    assert_whole(place)
    for trial_id, record in before.items():
        assert records(place)[trial_id]["history"][: len(record["history"])] == record["history"]


def test_two_workers_a_trial_of_which_one_is_killed(place):
    arguments = ("--space", space(place), "--name", "s", "--workers-per-trial", "2", "--trials", "2")
    process = studies.start(*arguments, cwd=place)
    studies.wait_for(lambda: running_epoch(place, "0", 3), "trial 0's third epoch")
    worker(place).kill()
    finished(process)
    assert_whole(place, trials=2)
    assert studies.left_behind(place) == []


def test_packed_trials_come_back_from_a_killed_worker(place):
    arguments = ("--space", space(place), "--name", "s", "--concurrency", "4", "--set", "pack=4")
    process = studies.start(*arguments, cwd=place)
    packed = ("scratch", "0", "1", "2")
    studies.wait_for(lambda: all(running_epoch(place, name, 2) for name in packed), "the second epoch of all")
    worker(place).kill()
    finished(process)
    assert_whole(place)
    assert studies.left_behind(place) == []
