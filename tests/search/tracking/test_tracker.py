"""The process that writes to MLflow; what it writes is tested in tests/search/tracking/test_writer.py."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from search.tracking.store import connect
from search.tracking.tracker import Tracker
from tests.search.studies import ROOT, left_behind, wait_for
from tests.search.tracking.tracked import make_record, metrics_of, play
from trainables.errors import InputError


@pytest.fixture
def make_tracker(tmp_path):
    trackers = []

    def make(resume=False, **told):
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        trackers.append(Tracker(uri, str(tmp_path / "artifacts"), "a study", spool=tmp_path / "lost.log", **told))
        trackers[-1].open_study({"pair": "a-b"}, {"trials": 4}, {"settings/space.py": "x = 1"}, resume)
        return trackers[-1]

    yield make
    for tracker in trackers:
        tracker.close()


@pytest.fixture
def children(tmp_path):
    def read():
        client = connect(f"sqlite:///{tmp_path}/mlflow.db")
        runs = client.search_runs([client.get_experiment_by_name("a study").experiment_id])
        return {run.data.tags["trial_id"]: run for run in runs if "trial_id" in run.data.tags}

    return read


def test_all_that_is_told_is_written_and_the_process_ends(make_tracker, children):
    told = []
    tracker = make_tracker(on_run_id=told.append)
    one, other = make_record("1"), make_record("2")
    os.kill(tracker._process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does to both
    play(tracker, one, [1, 2, 3])
    play(tracker, other, [1], end=False)
    tracker.close("KILLED")
    runs = children()
    assert told == [one, other] and {run.info.run_id for run in runs.values()} == {one.run_id, other.run_id}
    assert {key: run.info.status for key, run in runs.items()} == {"1": "FINISHED", "2": "KILLED"}
    assert runs["1"].data.metrics["val/top1"] == 53.0
    assert tracker._process.exitcode == 0


def test_a_taken_name_is_refused_and_a_resumed_study_catches_up(make_tracker, children):
    make_tracker().close("KILLED")
    with pytest.raises(InputError, match="--resume"):
        make_tracker()
    unseen = make_record("3")
    unseen.add(metrics_of(1))
    unseen.finish(error="lost")
    tracker = make_tracker(resume=True)
    tracker.catch_up([unseen])
    tracker.close()
    assert children()["3"].data.tags["state"] == "failed" and children()["3"].info.run_id == unseen.run_id


def test_a_killed_writer_is_told_once_and_training_goes_on(make_tracker):
    warnings = []
    tracker = make_tracker(on_warning=warnings.append)
    tracker._process.kill()
    wait_for(lambda: warnings, "the warning")
    play(tracker, make_record("1"), [1, 2, 3])
    with pytest.raises(InputError, match="the process that writes to MLflow died"):
        tracker.catch_up([])
    tracker.close()
    assert len(warnings) == 1 and "--resume" in warnings[0]


def test_it_does_not_outlive_the_study(tmp_path):
    code = (
        "import time\nfrom search.tracking.tracker import Tracker\n"
        f"tracker = Tracker('sqlite:///{tmp_path}/mlflow.db', None, 's', spool='lost.log')\n"
        "print(tracker._process.pid, flush=True)\ntime.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    study = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, cwd=tmp_path)
    assert psutil.pid_exists(int(study.stdout.readline()))
    study.kill()
    study.communicate()
    assert left_behind(tmp_path) == []
