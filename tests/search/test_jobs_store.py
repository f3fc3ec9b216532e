"""Following and removing the studies of an object store, from a machine that has no copy of them or an old one."""

import json
import os
import signal
import subprocess
import sys

import pytest
from mlflow import MlflowClient

import search.storage
from search import jobs, local_studies
from search.account import ACCOUNT
from search.resume import sole_session
from search.session_log import BEGUN, CONSOLE
from search.storage import SESSION, STARTED, Storage
from search.tracking.study_run import StudyRun
from tests.search.object_store import BUCKET
from tests.search.studies import ROOT, wait_for

LINES = f"{BEGUN} 2026-01-01 00:00:00\n[00:01] trial 0 complete  val/top1 60.00\nended by: all 1 trials have run\n"
HOLD = """
import signal, sys
sys.path.insert(0, {root!r})
from search.resume import sole_session
from search.storage import Storage
storage = Storage({url!r})
folder = storage.root / "s"
folder.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: None)
with sole_session(folder, storage) as mirroring:
    (folder / "started.json").write_text("{{}}")
    mirroring.flush()
    print("up", flush=True)
    signal.pause()
"""

CUT = """
import os, shutil, sys
sys.path.insert(0, {root!r})
from search import jobs
shutil.rmtree = lambda folder: os._exit(9)
jobs.main(["rm", "s", "--storage", {url!r}, "--yes"])
"""


@pytest.fixture
def machine(store, tmp_path, monkeypatch):
    """Goes to another machine, which has a disk of its own; its storage."""
    monkeypatch.setattr(search.storage, "REACH_S", 120.0)  # the machine may be slow

    def go(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return Storage(store.url)

    return go


@pytest.fixture
def study(machine, store):
    """Has a machine run a study to its end; its run as MLflow is to know it."""

    def run(name="s", status="FINISHED", on="a"):
        storage = machine(on)
        folder = storage.root / name
        folder.mkdir(parents=True, exist_ok=True)
        with sole_session(folder, storage):
            started = {"space": "/gone/space.py", "flags": {"name": name, "storage": store.url}, "set": [], "stays": {}}
            (folder / STARTED).write_text(json.dumps(started))
            (folder / ACCOUNT).write_text(json.dumps({"sessions": [{"started": 9.0, "wall_s": {"search": 61.0}}]}))
            (folder / "space.py").write_text("STUDY = 1")
            (folder / CONSOLE).write_text(LINES)
            (folder / "run.log").write_text("what libraries say")
            told = StudyRun(folder, name)
            told.end(status)
        return told

    return run


@pytest.fixture
def call(store, capfd):
    """Does something with the store's studies: the code, and what was said."""

    def run(*words, url=store.url):
        capfd.readouterr()
        code = jobs.main([*words, "--storage", url])
        said = capfd.readouterr()
        assert "Traceback" not in said.err, said.err
        return code, said.out, said.err

    return run


def refused(call, *words, **more):
    """The one line of what is refused."""
    code, out, err = call(*words, **more)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (code, out, err)
    return err


def lease_of(store, name="s", **fields):
    """Has a session as the given holder would have it."""
    holder = {"token": "another", "pid": 1, "host": "elsewhere", "boot": "b", "free": False} | fields
    store.client.put_object(Bucket=BUCKET, Key=f"ofakd/{name}/{SESSION}", Body=json.dumps(holder).encode())


def test_another_machine_is_told_of_a_study_by_the_store(machine, study, call, store):
    study("old", on="b")
    Storage(store.url).remote.at("old").remove_all()  # the copy of machine b is a study that is no more
    study()
    study("t", "KILLED")
    store.client.put_object(Bucket=BUCKET, Key="ofakd/teachers/a/teacher.json", Body=b"{}")
    machine("b")
    code, out, _ = call("list")
    rows = {line.split()[0]: line.split() for line in out.splitlines()[1:]}
    assert code == 0 and rows.keys() == {"s", "t"}
    assert (rows["s"][1], rows["t"][1], rows["s"][-1]) == ("done", "interrupted", store.url)
    code, out, _ = call("status", "s")
    assert code == 0 and "trials:  1 complete in this session" in out
    assert "state:   done\n" in out and "took 1.0 min" in out
    assert call("logs", "s")[1] == LINES == call("logs", "s", "--follow")[1]
    assert not (Storage(store.url).root / "s").exists(), "looking brings nothing"


def test_what_is_not_there_is_one_line_whatever_is_on_this_disk(study, machine, call, store):
    study("old")
    Storage(store.url).remote.at("old").remove_all()
    assert f"there is nothing in {store.url}" in refused(call, "list")
    for action in ("status", "logs", "stop", "resume", "rm"):
        assert f"{store.url} has no study 'old'" in refused(call, action, "old")
    study("mine")
    assert refused(call, "status", "mime").endswith("has no study 'mime'; there are mine\n")
    assert "there is no bucket 'nowhere'" in refused(call, "list", url="s3://nowhere/x")
    code, out, _ = call("rm", "old", "--yes", "--missing-ok")
    assert code == 0 and out.startswith("gone already: ")


def test_one_that_another_machine_runs_is_left_to_it(study, call, store):
    study()
    lease_of(store)
    assert "running  " in call("list")[1]
    assert "state:   running (process 1 on elsewhere)" in call("status", "s")[1]
    assert "'s' is run by process 1 on elsewhere; stop it there" in refused(call, "stop", "s")
    assert "'s' is running; stop it first" in refused(call, "rm", "s", "--yes")
    assert "'s' is running already (process 1 on elsewhere)" in refused(call, "resume", "s")
    lease_of(store, host=os.uname().nodename, pid=os.getpid())
    assert "another machine of this name; stop it there" in refused(call, "stop", "s")
    assert f"s/{STARTED}" in store.names("s")


def test_stop_ends_the_process_of_this_machine(machine, call, store):
    machine("a")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(root=str(ROOT), url=store.url)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "up\n"
        code, out, err = call("stop", "s")
        assert code == 0 and f"jobs.py resume s --storage {store.url}" in out, err
        assert json.loads(store.content(f"s/{SESSION}"))["free"]
        assert process.wait(60) == 0
        assert "'s' is not running; it is interrupted" in refused(call, "stop", "s")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_one_whose_process_was_killed_is_interrupted(machine, call, store):
    machine("a")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(root=str(ROOT), url=store.url)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert "state:   interrupted\n" in call("status", "s")[1]


def test_resume_finds_the_space_file_in_the_store(study, machine, call, monkeypatch):
    study(status="KILLED")
    storage = machine("b")
    ran = []

    def start(words, **options):
        ran.append(words)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(local_studies.subprocess, "run", start)
    assert call("resume", "s")[0] == 0
    assert ran[0][2:4] == ["--space", str(storage.root / "s" / "space.py")]
    assert ran[0][4:] == ["--name", "s", "--storage", storage.url, "--resume", "--detach"]
    assert (storage.root / "s" / "space.py").read_text() == "STUDY = 1"


@pytest.mark.parametrize("on", ["a", "b"], ids=["its-machine", "another"])
def test_rm_leaves_nothing_of_it_and_all_of_others(study, machine, call, store, on):
    told = study()
    study("t")
    store.client.put_object(Bucket=BUCKET, Key="ofakd/teachers/a/teacher.json", Body=b"{}")
    for trial in range(3):
        store.client.put_object(Bucket=BUCKET, Key=f"ofakd/s/trials/{trial}/checkpoint.pt", Body=b"weights")
    storage = machine(on)
    storage.root.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(f"sqlite:///{storage.root}/mlflow.db") if on == "a" else None
    made = client and client.create_experiment("s", tags={"study_id": told.study_id})
    code, out, err = call("rm", "s", "--yes")
    assert code == 0 and out.splitlines()[-1] == f"removed: {store.url}/s", err
    if client:
        assert client.get_experiment(made).lifecycle_stage == "deleted"
    else:
        assert "left: what MLflow knows of it on the machine that ran it" in out
    assert store.names("s/") == [] and not (storage.root / "s").exists()
    assert f"t/{STARTED}" in store.names("t/") and store.names("teachers/") == ["teachers/a/teacher.json"]
    assert "has no study 's'; there are t" in refused(call, "rm", "s", "--yes")


def test_a_store_that_removes_nothing_is_told_and_the_study_can_be_removed_later(study, call, store):
    study()
    store.deny("s3:DeleteObject")
    code, out, err = call("rm", "s", "--yes")
    assert code == 2 and "removed" not in out and err.count("\n") == 1, (out, err)
    store.client.delete_bucket_policy(Bucket=BUCKET)
    assert "state:   done" in call("status", "s")[1]
    code, out, err = call("rm", "s", "--yes")
    assert code == 0 and "removed: " in out and store.names("s/") == [], err


def test_a_removal_that_was_cut_off_can_be_done_again(study, machine, call, store):
    study()
    storage = machine("b")
    cut = subprocess.run([sys.executable, "-c", CUT.format(root=str(ROOT), url=store.url)], check=False)
    assert cut.returncode == 9
    assert sorted(store.names("s/")) == [f"s/{SESSION}", f"s/{STARTED}"]
    code, out, err = call("rm", "s", "--yes")
    assert code == 0 and "removed: " in out and store.names("s/") == [], err
    assert not (storage.root / "s").exists()


def test_a_follower_sees_what_comes_until_the_end(study, call, store, monkeypatch):
    study()
    lease_of(store)
    looked = []

    def sleep(seconds):
        looked.append(seconds)
        store.client.put_object(Bucket=BUCKET, Key=f"ofakd/s/{CONSOLE}", Body=(LINES + "more\n").encode())
        lease_of(store, free=True)

    monkeypatch.setattr("search.jobs_command.time.sleep", sleep)
    assert call("logs", "s", "--follow")[1] == LINES + "more\n" and looked == [2.0]
    wait_for(lambda: not [name for name in store.names("s/") if ".now" in name], "what told the time to go", 5)
