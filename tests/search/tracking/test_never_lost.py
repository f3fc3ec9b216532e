"""Whole studies whose MLflow server is killed, frozen or not there, and that are killed themselves.

The studies are simulated, at the pace of training, but for the last one.
"""

import json
import os
import signal

import pandas
import pytest

from search.ledger import RUNNING, Ledger
from tests.search import studies
from tests.search.studies import wait_for
from tests.search.tracking.servers import stop
from tests.search.tracking.tracked import Seen, points_of

pytestmark = pytest.mark.long

# A trial takes a ticket, and ends once the test has let so many pass.
CURVES = """
import itertools, pathlib, time

from search.landscape import Synthetic

HERE = pathlib.Path(__file__).parent

def curves(config, params, epochs, seed):
    for ticket in itertools.count(1):
        try:
            (HERE / f"ticket-{ticket}").touch(exist_ok=False)
            break
        except FileExistsError:
            continue
    while ticket > int((HERE / "passing").read_text()):
        time.sleep(0.05)
    return Synthetic()(config, params, epochs, seed)
"""
TRIALS, ALL = 30, 1000
BODY = 'return {"stages": [3, 4], "eps": trial.suggest_float("eps", 1.0, 2.0)}'
TRAINED = "trials=2, epochs=10, scheduler='none', student='mixer_nano', student_kwargs={}, holdout=0.5"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of its own whose study's processes can be told from others'."""
    monkeypatch.setenv("OFAKD_TEST", str(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # of a frozen server; by default two minutes
    (tmp_path / "mine.py").write_text(CURVES)
    (tmp_path / "passing").write_text("0")
    return tmp_path


def let_pass(place, trials):
    """Waits until so many trials have ended, which had to wait for it, besides those that end as the study begins."""
    before = ended(place)
    _write_passing(place, int((place / "passing").read_text()) + trials)
    wait_for(lambda: ended(place) >= before + trials - 1, f"{trials} more trials")


def let_all_pass(place):
    _write_passing(place, ALL)


def _write_passing(place, trials):
    (place / "passing.new").write_text(str(trials))
    (place / "passing.new").replace(place / "passing")  # whole, for those that read it meanwhile


def simulated(uri, *more):
    fields = ("simulate=mine:curves", f"trials={TRIALS}", "concurrency=2", "finalists=0", *more)
    return ("--space", studies.MAIN_SPACE, "--name", "s", "--tracking-uri", uri, "--set", *fields)


def ended(place):
    """How many trials have ended."""
    paths = (place / "runs" / "s" / "trials").glob("*/record.json")
    return sum(json.loads(path.read_text())["state"] != RUNNING for path in paths)


def assert_equal(place, uri, simulated=True):
    """MLflow has each trial once, with each point and file of the study's folder, and what `trials.csv` says."""
    seen, folder = Seen(uri, "s"), place / "runs" / "s"
    records = Ledger(folder / "trials").records
    children = seen.children
    assert children.keys() == records.keys()
    for trial_id, record in records.items():
        run = children[trial_id]
        assert seen.points(run) == points_of(record), trial_id
        assert run.data.tags["state"] == ("interrupted" if record.state == RUNNING else record.state)
        assert run.info.status != "RUNNING"
        files = [entry.path for entry in seen.client.list_artifacts(run.info.run_id)]
        assert sorted(files) == ([] if simulated or record.state == RUNNING else ["learning_curve.png", "log.txt"])
    if (folder / "trials.csv").exists():
        for row in pandas.read_csv(folder / "trials.csv", dtype={"trial_id": str}).to_dict("records"):
            run = children[row["trial_id"]]
            for name in ("val/top1", "best/val_top1"):
                assert run.data.metrics[name] == pytest.approx(row[name], rel=1e-12)
            assert run.data.tags["state"] == row["state"]
        held = {entry.path for entry in seen.client.list_artifacts(seen.parent.info.run_id)}
        assert {"trials.csv", "best.yaml", "report.html", "history.png", "settings.yaml"} <= held


def sync(place, code=0):
    ran = studies.run("--study", "s", cwd=place, script="sync")
    assert ran.code == code, ran.err + ran.out
    return ran.out + ran.err


def test_a_server_that_is_killed_and_frozen_amid_a_study_misses_nothing(place, server):
    uri, start = server
    process = start()
    study = studies.Followed(studies.start(*simulated(uri), cwd=place))
    let_pass(place, 6)
    stop(process)
    let_pass(place, 6)
    process = start()
    known = ended(place)
    wait_for(lambda: len(Seen(uri, "s").children) >= known, "what waited")
    os.killpg(process.pid, signal.SIGSTOP)  # it takes requests and answers them, too late
    let_pass(place, 6)
    wait_for(lambda: study.out.count("waits in") == 2, "the second outage's note")
    os.killpg(process.pid, signal.SIGCONT)
    let_all_pass(place)
    ran = study.end()
    assert ran.code == 0 and "sync.py" not in ran.out, ran.err + ran.out
    assert_equal(place, uri)


def test_a_study_that_is_killed_without_its_server_is_synced_and_goes_on(place, server):
    uri, start = server
    process = start()
    study = studies.start(*simulated(uri), cwd=place)
    let_pass(place, 6)
    stop(process)
    let_pass(place, 6)
    study.kill()
    study.communicate(timeout=studies.LIMIT_S)
    assert "unreachable" in sync(place, code=2)
    process = start()
    assert "has study s whole" in sync(place)
    assert_equal(place, uri)
    assert Seen(uri, "s").parent.info.status == "KILLED"
    stop(process)
    let_all_pass(place)
    resumed = studies.run(*simulated(uri, "tracking_offline=true"), "--resume", cwd=place)
    assert resumed.code == 0 and "search/sync.py --study s" in resumed.out, resumed.out + resumed.err
    start()
    sync(place)
    assert_equal(place, uri)
    assert Seen(uri, "s").parent.info.status == "FINISHED"
    assert ", 0 of them written now" in sync(place)
    assert_equal(place, uri)


def test_a_study_may_start_without_its_server_where_that_is_allowed(place, server):
    uri, start = server
    refused = studies.run(*simulated(uri), cwd=place)
    assert refused.code == 2 and "unreachable" in refused.err and not (place / "runs" / "s").exists()
    study = studies.start(*simulated(uri, "tracking_offline=true"), cwd=place)
    let_pass(place, 6)
    start()
    wait_for(lambda: Seen(uri, "s").experiment and len(Seen(uri, "s").runs()) > 6, "what waited")
    let_all_pass(place)
    out, err = study.communicate(timeout=studies.LIMIT_S)
    assert study.returncode == 0 and "sync.py" not in out, err + out
    assert_equal(place, uri)


def test_training_goes_on_and_its_files_arrive(place, server):
    uri, start = server
    process = start()
    space = studies.write_space(place, BODY, [], TRAINED)
    study = studies.start("--space", space, "--name", "s", "--tracking-uri", uri, cwd=place)
    wait_for(lambda: ended(place) >= 1, "a trial's end")
    stop(process)
    wait_for(lambda: ended(place) >= 2, "another trial's end")
    start()
    out, err = study.communicate(timeout=studies.LIMIT_S)
    assert study.returncode == 0, err + out
    if "sync.py" in out:
        sync(place)
    assert_equal(place, uri, simulated=False)


def test_sync_names_what_is_wrong(place):
    assert "there is no study 's'" in sync(place, code=2)
    (place / "runs" / "s").mkdir(parents=True)
    assert "has nothing for MLflow yet" in sync(place, code=2)
