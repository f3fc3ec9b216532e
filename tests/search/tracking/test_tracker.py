"""The process that writes to MLflow; when it writes is tested in test_writer.py, and what in test_mirror.py."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from search.tracking.tracker import MOST_DEATHS, Tracker
from tests.search.studies import ROOT, left_behind, wait_for
from tests.search.tracking.tracked import STUDY, Seen, Told, make_record, points_of
from trainables.errors import InputError


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def make_tracker(tmp_path, uri):
    trackers = []

    def make(resume=False, notes=None):
        (tmp_path / STUDY).mkdir(exist_ok=True)
        tracker = Tracker(uri, tmp_path / STUDY)
        trackers.append(tracker)
        if notes is not None:
            tracker.hear(notes.append)
        tracker.open_study({"pair": "a-b"}, {"trials": 4}, {"settings/space.py": "x = 1"}, {}, {}, resume)

        def tell(place, live=False):
            record = ledger.ledger.records[place.split("/")[-1]]
            (tracker.trial_started if live else tracker.trial_changed)(record)

        ledger = Told(tmp_path / STUDY, tell)
        return tracker, ledger

    yield make
    for tracker in trackers:
        tracker.close()


def test_all_that_is_told_is_written_and_the_process_ends(make_tracker, uri, tmp_path):
    tracker, told = make_tracker()
    one, other = make_record("1"), make_record("2")
    os.kill(tracker._process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does to both
    told.play(one, [1, 2, 3])
    told.play(other, [1], end=False)
    (tmp_path / STUDY / "picture.txt").write_text("a picture")
    tracker.study_artifact(tmp_path / STUDY / "picture.txt")
    tracker.study_metric("best", 53.0, 0)
    tracker.study_tags({"verdict": "fine"})
    assert tracker.close("KILLED") == 0
    seen = Seen(uri)
    assert {key: run.info.status for key, run in seen.children.items()} == {"1": "FINISHED", "2": "KILLED"}
    assert seen.points(seen.children["1"]) == points_of(one)
    assert (seen.parent.info.status, seen.parent.data.tags["verdict"]) == ("KILLED", "fine")
    assert seen.parent.data.metrics == {"best": 53.0}
    assert {entry.path for entry in seen.client.list_artifacts(seen.parent.info.run_id)} == {"picture.txt", "settings"}
    assert tracker._process.exitcode == 0


def test_a_study_that_is_interrupted_before_it_is_opened_says_nothing(tmp_path, uri):
    notes = []
    tracker = Tracker(uri, tmp_path)
    tracker.hear(notes.append)
    os.kill(tracker._process.pid, signal.SIGINT)  # as it starts
    tracker.study_tags({"ended_by": "interrupted"})
    assert tracker.close("KILLED") == 0
    assert notes == [] and tracker._process.exitcode == 0 and not (tmp_path / "tracking.json").exists()


def test_a_taken_name_is_refused_and_leaves_the_folder_as_it_was(make_tracker, tmp_path):
    path = tmp_path / STUDY / "tracking.json"
    make_tracker()[0].close("FINISHED")
    content = path.read_text().replace('"study_id": "', '"study_id": "another')
    path.write_text(content)
    with pytest.raises(InputError, match="of another study"):
        make_tracker(resume=True)
    assert json.loads(path.read_text()) == json.loads(content)


def test_a_writing_process_that_does_not_read_holds_nothing_up(make_tracker, uri):
    tracker, told = make_tracker()
    os.kill(tracker._process.pid, signal.SIGSTOP)
    record = make_record("1")
    told.started(record)
    for _ in range(3000):  # far more than a pipe takes
        tracker.trial_changed(record)
    os.kill(tracker._process.pid, signal.SIGCONT)
    told.play(record, [1, 2, 3])
    assert tracker.close() == 0
    assert Seen(uri).points(Seen(uri).children["1"]) == points_of(record)


def test_what_is_told_before_anybody_hears_is_not_lost(make_tracker):
    tracker, _ = make_tracker()
    tracker._process.kill()
    wait_for(lambda: tracker._deaths, "its death")
    notes = []
    wait_for(lambda: tracker.hear(notes.append) or notes, "the note")


def test_where_the_writing_process_dies_another_one_goes_on(make_tracker, uri):
    notes = []
    tracker, told = make_tracker(notes=notes)
    first, second = make_record("1"), make_record("2")
    told.play(first, [1], end=False)
    tracker._process.kill()
    wait_for(lambda: notes, "the note")
    told.play(second, [1, 2, 3])
    assert tracker.close("KILLED", timeout=120) == 0
    assert notes == ["tracking: the process that writes to MLflow died; another one goes on"]
    seen = Seen(uri)
    for record in (first, second):
        assert seen.points(seen.children[record.trial_id]) == points_of(record)


def test_one_that_dies_again_and_again_is_told_and_training_goes_on(make_tracker):
    notes = []
    tracker, told = make_tracker(notes=notes)
    for deaths in range(1, MOST_DEATHS + 2):
        tracker._process.kill()
        wait_for(lambda deaths=deaths: len(notes) == deaths, "the note")
    told.play(make_record("1"), [1, 2, 3])
    assert tracker.close() is None and "search/sync.py" in notes[-1]


def test_it_does_not_outlive_the_study(tmp_path):
    code = (
        "import time\nfrom search.tracking.tracker import Tracker\n"
        f"tracker = Tracker('sqlite:///{tmp_path}/mlflow.db', '{tmp_path}')\n"
        "print(tracker._process.pid, flush=True)\ntime.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    study = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, cwd=tmp_path)
    assert psutil.pid_exists(int(study.stdout.readline()))
    study.kill()
    study.communicate()
    assert left_behind(tmp_path) == []
