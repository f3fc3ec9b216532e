"""Following studies: the command's flags, what is refused before an upload, and what goes along with a job."""

import contextlib
import http.server
import io
import json
import socket
import subprocess
import sys
import threading
import time
from importlib import metadata
from types import SimpleNamespace

import pytest
from rich.console import Console

from search import cluster_jobs, jobs, jobs_command, run, submission
from search.cluster_jobs import StudyJob, checked_address, connect, flag_of, given_address
from search.job_package import MOST_FILES, own_modules, package
from search.jobs_view import progress, read_progress
from search.ledger import TrialRecord
from search.live import PlainView
from search.session_log import CONSOLE, begin
from search.submission import _told, job_address, resubmit
from search.tracking.credentials import NOTIFY_URL, PASSWORD, TYPED
from tests.search import studies
from trainables.errors import InputError

SIMULATED = ("--space", studies.MAIN_SPACE, "--set", "simulate=synthetic")


def by_hand(address: str, name: str, storage: str) -> str:
    """README's command for a study that is submitted by hand."""
    lines = (studies.ROOT / "README.md").read_text().split("RAY_AUTH_MODE=token ray job", 1)[1].split("\n\n", 1)[0]
    command = " ".join(("RAY_AUTH_MODE=token ray job" + lines).replace("\\\n", " ").split())
    return command.replace("http://HEAD:8265", address).replace("mine", name).replace("/shared/runs", storage)


@contextlib.contextmanager
def server(status: int, content: bytes):
    """An HTTP server that always answers so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words):
            pass

    answering = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=answering.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{answering.server_address[1]}"
    finally:
        answering.shutdown()
        thread.join()
        answering.server_close()


def details(entrypoint, status="RUNNING", metadata=None, code=None):
    return SimpleNamespace(
        submission_id="job1",
        entrypoint=entrypoint,
        status=status,
        metadata=metadata,
        driver_exit_code=code,
        start_time=1000,
        end_time=None,
        message=None,
    )


def refused(capfd, *words):
    assert run.main(list(words)) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines)
    return lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: ACTION"),
        (["stats"], "invalid choice: 'stats'"),
        (["status"], "the following arguments are required: STUDY"),
        (["stop", "s", "--yes"], "unrecognized arguments: --yes"),
        (["logs", "s", "--fol"], "unrecognized arguments: --fol"),
    ],
)
def test_flags_that_cannot_be_read_are_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        jobs.main(words)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and said in err and err.startswith("error: ") and err.count("\n") == 1


def test_help_is_there_at_once_without_torch_or_ray():
    code = """
import runpy, sys
sys.argv = ["search/jobs.py", "rm", "--help"]
try:
    runpy.run_path("search/jobs.py", run_name="__main__")
except SystemExit as ended:
    assert ended.code == 0, ended.code
heavy = {"torch", "ray", "timm", "optuna", "mlflow", "pandas", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=studies.ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "--yes" in ran.stdout, ran.stderr


def test_the_address_is_the_given_one_or_that_of_rays_own_variables(monkeypatch):
    for name in cluster_jobs.ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    assert given_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert given_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://b:1/")
    assert given_address(None) == "http://b:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://c")
    assert given_address(None) == "https://c" and given_address("http://d:2") == "http://d:2"


@pytest.mark.parametrize("address", ["ray://a:1", "http://", "http://a:x", "127.0.0.1:6379", "auto"])
def test_an_address_that_is_no_dashboard(address):
    with pytest.raises(InputError, match=r"^--address: .* give http://HEAD:8265$"):
        checked_address(address)


def test_a_log_in_in_the_address_is_not_shown():
    with pytest.raises(InputError, match="leave user and password out") as error:
        checked_address("http://me:s3cret@head:8265")
    assert "s3cret" not in str(error.value)


def test_which_addresses_are_jobs():
    assert job_address({"address": "http://a:1"}, []) == "http://a:1"
    assert job_address({"address": "a:1"}, ["address=http://b:2"]) == "http://b:2"
    assert job_address({"address": "a:1"}, []) is job_address({"address": "auto"}, []) is job_address({}, []) is None


def test_nobody_or_another_one_at_the_address(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = (*SIMULATED, "--storage", str(tmp_path / "shared"))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "nobody answers at" in refused(capfd, *study, "--address", closed)[0]
        silent.listen()
        begun = time.monotonic()
        assert "nobody answers at" in refused(capfd, *study, "--address", closed)[0]
        assert time.monotonic() - begun < 10 * cluster_jobs.REACH_S
    with server(200, b"<html>") as page:
        assert "is no dashboard of a Ray cluster" in refused(capfd, *study, "--address", page)[0]
    with server(200, b"[]") as page:
        assert "is no dashboard of a Ray cluster" in refused(capfd, *study, "--address", page)[0]
    with server(404, b"") as page:
        assert "answers 404" in refused(capfd, *study, "--address", page)[0]
    python = ".".join(map(str, sys.version_info[:3]))
    for ray, version, said in (
        ("2.9.3", python, f"has Ray 2.9.3, this machine {metadata.version('ray')}; install the same one"),
        (metadata.version("ray"), "3.7.1", "has Python 3.7, this machine"),
    ):
        about = {"data": {"rayVersion": ray, "pythonVersion": version}}
        with server(200, json.dumps(about).encode()) as page:
            assert said in refused(capfd, *study, "--address", page)[0]
    assert list(tmp_path.iterdir()) == []


def test_jobs_without_an_address_or_a_cluster_names_both_ways(capfd, monkeypatch):
    for name in cluster_jobs.ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster_jobs, "DEFAULT", "http://127.0.0.1:1")
    assert jobs.main(["list"]) == 2
    err = capfd.readouterr().err
    assert "give --address http://HEAD:8265, or --storage runs" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "storage: 'runs' is a folder of this machine; give an absolute path"),
        (["--storage", "shared/runs"], "storage: 'shared/runs' is a folder of this machine"),
        (["--storage", "file://runs"], "storage: 'file://runs' is a folder of this machine"),
        (["--data", "torch/mnist", "--data-dir", "data"], "data_dir: 'data' is a path of this machine"),
        (["--data", "./photos"], "data: './photos' is a folder of this machine"),
        (["--set", "teacher_source=checkpoint", "teacher_weights=t.pt"], "teacher_weights: 't.pt' is a path of this"),
        (["--set", "teacher_store_at=store"], "teacher_store_at: 'store' is a path of this machine"),
        (["--tracking-uri", "sqlite:///runs/mlflow.db"], "tracking_uri: sqlite:///runs/mlflow.db is a file of this"),
        (["--warm-start", "best.json"], "warm_start: 'best.json' is a file of this machine"),
        (["--trials", "0"], "trials: 0 must be"),
        (["--set", "sampler=bayes"], "sampler: 'bayes'"),
        (["--resume"], "--resume: give the study's --name"),
        (["--resume", "--name", "s"], "storage: 'runs' is a folder of this machine"),
        (["--tracking-uri", "http://me:s3cret@host"], f"{PASSWORD}: a secret does not go along with a job"),
        (
            ["--set", "notify=curl http://me:s3cret@host"],
            f"give --set notify=env:{NOTIFY_URL}, and have {NOTIFY_URL} in",
        ),
        (["--storage", "s3://me:s3cret@bucket/f"], "storage: s3://me:***@bucket/f has a secret in it"),
        (["--resume", "--name", "s", "--storage", "s3://me:s3cret@bucket/f"], "storage: s3://me:***@bucket/f has a"),
        (["--set", "teacher_store_at=sftp://me:s3cret@host/f"], "teacher_store_at: sftp://me:***@host/f has a secret"),
        (["--set", "notify=https://host/s3cret"], f"give --set notify=env:{NOTIFY_URL}, and have {NOTIFY_URL} in the"),
    ],
)
def test_what_would_fail_on_the_cluster_is_refused_here(words, said, capfd, monkeypatch, tmp_path):
    for name in (TYPED, PASSWORD, "MLFLOW_TRACKING_USERNAME", NOTIFY_URL):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    lines = refused(capfd, *SIMULATED, *words, "--address", "http://127.0.0.1:1")
    assert any(said in line for line in lines), lines
    assert not any("s3cret" in line for line in lines)


def test_the_space_file_is_looked_at_first(capfd, tmp_path):
    lines = refused(capfd, "--space", str(tmp_path / "nowhere.py"), "--address", "http://127.0.0.1:1")
    assert len(lines) == 1 and "--space: no file" in lines[0]


def test_what_goes_along_with_a_job(tmp_path):
    mine = tmp_path / "mine"
    for name in ("model.py", "parts/heads.py", ".hidden/a.py", "venv/lib/b.py", "runs/s/space.py", "search/own.py"):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(name)
    (mine / "venv" / "pyvenv.cfg").touch()
    (mine / "notes.txt").touch()
    (mine / ".#model.py").symlink_to("me@host.123:1")
    (mine / "gone.py").symlink_to("nowhere.py")
    space = mine / "parts" / "space.py"
    space.write_text("STUDY = 1")
    place = tmp_path / "place"
    place.mkdir()
    inside, note = package(space, mine, place)
    assert (inside, note) == ("parts/space.py", None)
    assert (place / inside).read_text() == "STUDY = 1"
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert {"model.py", "parts/heads.py", "search/run.py", "trainables/lane.py", "spaces/parts.py"} < files
    assert not [name for name in files if name.startswith((".", "venv", "runs", "tests")) or name.endswith(".pyc")]
    assert not {"search/own.py", "gone.py"} & files and "notes.txt" not in files
    assert "search/exporters/base.py" in files
    assert "git/commit" in json.loads((place / "search/tracking/commit.json").read_text())

    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text("STUDY = 2")
    for where, expected in ((elsewhere, "spaces/uploaded/elsewhere.py"), (studies.MAIN_SPACE, "spaces/vit_to_mlp.py")):
        place = tmp_path / f"place-{expected.count('/')}"
        place.mkdir()
        assert package(type(space)(where), mine, place)[0] == expected
        assert (place / expected).read_bytes() == type(space)(where).read_bytes()


def test_a_folder_that_is_too_large_is_left_out_and_that_is_told(tmp_path):
    for number in range(MOST_FILES + 1):
        (tmp_path / f"m{number}.py").touch()
    files, note = own_modules(tmp_path)
    assert files == [] and f"no module of {tmp_path} goes along" in note


def test_a_flag_among_a_commands_words():
    words = ["python", "run.py", "--name", "a", "--name=b", "--storage"]
    assert flag_of(words, "--name") == "b"
    assert flag_of(words, "--storage") is flag_of(words, "--space") is None


@pytest.mark.parametrize(
    ("entrypoint", "metadata", "name"),
    [
        ("python search/run.py --name s --space a.py", {"ofakd_study": "mine"}, "mine"),
        ("cd x && python search/run.py --space a.py --name=s", None, "s"),
        ("ofakd-search --space a.py", None, "job1"),
        ("bash /home/ray/ofakd/clusters/study.sh --name s --space a.py --storage s3://b/c", None, "s"),
        ("python search/run.py --space a.py --name s --dry-run", None, None),
        ("python other.py --name s", None, None),
        ("echo 'torn", None, None),
    ],
)
def test_which_jobs_are_studies(entrypoint, metadata, name):
    found = cluster_jobs.study_jobs(SimpleNamespace(list_jobs=lambda: [details(entrypoint, metadata=metadata)]))
    assert [key[0] for key in found] == ([name] if name else [])


@pytest.mark.parametrize(
    ("status", "code", "state", "ends_with"),
    [
        ("PENDING", None, "waiting", 1),
        ("SUCCEEDED", 0, "done", 0),
        ("STOPPED", None, "interrupted", 130),
        ("FAILED", 1, "failed", 1),
        ("FAILED", 2, "refused", 2),
        ("FAILED", 130, "interrupted", 130),
        ("FAILED", None, "failed", 1),
        ("FAILED", -9, "failed", 1),
    ],
)
def test_a_jobs_state_and_the_exit_code_of_one_who_follows(status, code, state, ends_with):
    job = cluster_jobs._from(details("x", status, code=code), "s", [])
    assert job.state == state and cluster_jobs.exit_code_of(job) == ends_with


def test_why_a_job_ended_that_could_not_say_so(capsys):
    for code, message, said in ((127, "", "no `python` on the PATH"), (None, "no such node", "failed: no such node")):
        assert _told(StudyJob("s", "job", "failed", 0.0, 1.0, [], code=code, message=message)) == 1
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


def test_a_head_that_is_still_starting_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(submission.time, "sleep", lambda seconds: None)
    answers = iter([RuntimeError("500: No available agent to submit job"), None])
    asked = []

    def submit_job(**options):
        asked.append(options)
        if error := next(answers):
            raise error
        return options["submission_id"]

    client = SimpleNamespace(submit_job=submit_job)
    assert submission.start_job(client, "s", "true", tmp_path, {}) == asked[0]["submission_id"] and len(asked) == 2
    answers = iter([RuntimeError("the disk is full")])
    with pytest.raises(InputError, match=r"^--address: the cluster takes no job \(the disk is full\)$"):
        submission.start_job(client, "s", "true", tmp_path, {})


def test_the_session_that_is_going_is_meant_before_a_later_one_that_was_refused():
    first = details("python search/run.py --name s", "RUNNING")
    later = details("python search/run.py --name s", "FAILED", code=2)
    later.start_time = 9000
    found = cluster_jobs.study_jobs(SimpleNamespace(list_jobs=lambda: [first, later]))
    assert [job.state for job in found["s", None]] == ["running", "refused"]


@pytest.fixture
def cluster(monkeypatch):
    """Makes a cluster's job API know jobs, given by id, state, storage and log; what is deleted there."""

    def make(*jobs):
        known = {}
        for job, status, storage, log in jobs:
            command = "python search/run.py --space a.py --name mine" + (f" --storage {storage}" if storage else "")
            known[job] = details(command, status), log
            known[job][0].submission_id = job
        deleted = []
        client = SimpleNamespace(
            list_jobs=lambda: [one for one, _ in known.values()],
            get_job_logs=lambda job: known[job][1],
            get_job_info=lambda job: known[job][0],
            delete_job=deleted.append,
        )
        monkeypatch.setattr(cluster_jobs, "connect", lambda address: client)
        return client, deleted

    return make


BEGAN = "checking the space\n[00:00] searching\n"
AT = ("--address", "http://head:8265")


def test_two_peoples_studies_of_one_name_are_two(cluster, capfd, tmp_path, monkeypatch):
    client, _ = cluster(("a1", "RUNNING", "s3://a", BEGAN), ("b1", "SUCCEEDED", "s3://b/x", BEGAN))
    assert jobs.main(["list", *AT]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert rows[0][-1] == "where" and sorted((row[1], row[-1]) for row in rows[1:]) == [
        ("done", "s3://b/x"),
        ("running", "s3://a"),
    ]
    assert jobs.main(["status", "mine", *AT]) == 2
    err = capfd.readouterr().err
    said = "the cluster has several studies 'mine', in s3://a, s3://b/x; give --storage with the one that is meant"
    assert said in err and err.count("\n") == 1
    assert jobs.main(["status", "mine", *AT, "--storage", "s3://b/x/"]) == 0
    assert "done (job b1)" in capfd.readouterr().out
    assert jobs.main(["list", *AT, "--storage", "s3://a"]) == 0
    assert "b1" not in capfd.readouterr().out
    assert jobs.main(["stop", "mine", *AT, "--storage", "s3://c"]) == 2
    assert "has no study 'mine'" in capfd.readouterr().err
    lines = submission.how_to_follow(client, "mine", "s3://a", cluster_jobs.DEFAULT)
    assert lines[0].endswith(f"status mine --address {cluster_jobs.DEFAULT} --storage s3://a")

    monkeypatch.setattr(submission, "start_job", lambda client, name, command, *more: command)
    space = type(tmp_path)(studies.MAIN_SPACE)
    flags = {"name": "mine", "storage": "s3://b/x"}
    assert "--storage s3://b/x" in submission.submit(client, space, tmp_path, flags, [])
    with pytest.raises(InputError, match="'mine' is running as job a1"):
        submission.submit(client, space, tmp_path, {**flags, "storage": "s3://a/"}, [])


def test_a_study_whose_job_names_no_storage_is_told_from_the_others(cluster, capfd):
    cluster(("a1", "SUCCEEDED", None, BEGAN), ("b1", "SUCCEEDED", "/shared", BEGAN))
    assert jobs.main(["status", "mine", *AT]) == 2
    assert "several studies 'mine', in not named (''), /shared" in capfd.readouterr().err
    assert jobs.main(["status", "mine", *AT, "--storage", ""]) == 0
    assert "done (job a1)" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("status", "log", "began"),
    [("STOPPED", BEGAN, True), ("SUCCEEDED", "", True), ("FAILED", "error: --name: study 'mine' exists\n", False)],
    ids=["its-log-says-so", "it-is-done", "refused"],
)
def test_rm_removes_in_the_storage_what_began_and_the_jobs_of_that_study_alone(
    cluster, capfd, monkeypatch, status, log, began
):
    _, deleted = cluster(("a1", status, "s3://a", log), ("a2", "FAILED", "s3://a", ""), ("b1", status, "s3://b", log))
    commands = []

    def start_job(client, name, command, *more):
        commands.append(command)
        return "rm1"

    monkeypatch.setattr(jobs_command, "start_job", start_job)
    monkeypatch.setattr(cluster_jobs, "follow", lambda client, job: StudyJob("", job, "done", 0.0, 1.0, [], code=0))
    assert jobs.main(["rm", "mine", *AT, "--storage", "s3://a", "--yes"]) == 0
    assert sorted(deleted) == ["a1", "a2", *(["rm1"] if began else [])]
    removing = "python search/jobs.py rm mine --storage s3://a --yes --missing-ok"
    assert commands == ([removing] if began else [])
    assert ("s3://a is left as it was" in capfd.readouterr().out) != began


def test_a_study_that_is_gone_already_may_be_no_error(tmp_path, capfd):
    words = ["rm", "mine", "--storage", str(tmp_path), "--yes"]
    assert jobs.main([*words, "--missing-ok"]) == 0
    assert capfd.readouterr().out == f"gone already: {tmp_path} has no study 'mine'\n"
    assert jobs.main(words) == 2
    assert jobs.main([*words[:3], str(tmp_path / "not-mounted"), "--missing-ok"]) == 2


def test_progress_is_read_from_what_a_session_prints():
    text = io.StringIO()
    view = PlainView(Console(file=text, width=120), 3, "s", "a teaches b", [])
    ends = {"complete": {"error": None}, "failed": {"error": "out of memory"}, "pruned": {"stopped": None}}
    for number, (state, how) in enumerate(ends.items()):
        record = TrialRecord(str(number), "trial", {"epochs": 2, "distiller": "kd"}, {})
        record.add({"epoch": 1, "val/top1": 50.0})
        if state != "pruned":
            record.add({"epoch": 2, "val/top1": 60.0})
        view.trial_started(record)
        record.finish(**how)
        assert record.state == state
        view.trial_ended(record)
    view.phase("writing the results")
    counts, last = read_progress(text.getvalue(), going=True)
    assert counts == {"complete": 1, "failed": 1, "pruned": 1} and last[-1].endswith("writing the results")
    ended = text.getvalue() + "best:    eps=1\nended by: all 3 trials have run\nspent: 1 s\nfiles: x\n"
    assert read_progress(ended, going=False)[1] == ["best:    eps=1", "ended by: all 3 trials have run", "spent: 1 s"]


def test_progress_is_the_latest_sessions(tmp_path, capsys):
    for lines in ("[00:01] trial 0 complete  val/top1 60.00\n" * 3, "[00:01] trial 3 pruned  val/top1 50.00\n"):
        begin(tmp_path)
        with (tmp_path / CONSOLE).open("a") as log:
            log.write(lines)
    progress((tmp_path / CONSOLE).read_text(), going=True)
    assert capsys.readouterr().out.splitlines()[0] == "trials:  1 pruned in this session"


def test_a_study_that_is_not_known_is_answered_with_near_names():
    for name, there in (("mime", "mine"), ("zzz", "mine, other")):
        with pytest.raises(InputError, match=f"has no study '{name}'; there are {there}$"):
            jobs_command._known({"mine": 1, "other": 2}, name, "the cluster")


def test_a_study_goes_on_only_where_its_space_is(tmp_path):
    about = {"space": str(tmp_path / "gone.py"), "folder": str(tmp_path), "flags": {"name": "s"}, "sets": []}
    with pytest.raises(InputError, match=r"no .*gone.py, the space file of 's'; go on with: search/run.py"):
        resubmit(None, StudyJob("s", "job", "interrupted", 0.0, 1.0, [], about), begun=True)
    with pytest.raises(InputError, match="submitted by hand; do that again with --resume --name s"):
        resubmit(None, StudyJob("s", "job", "interrupted", 0.0, 1.0, []), begun=True)


@pytest.mark.long
def test_studies_of_this_machine(tmp_path):
    def local(*words):
        return studies.run(*words, "--storage", "runs", cwd=tmp_path, script="jobs")

    (tmp_path / "runs" / "teachers").mkdir(parents=True)
    empty = local("list")
    assert empty.code == 0 and "no study" in empty.out
    endless = ("--epochs", "9000", "--set", "max_images=200", "teacher_recipe.epochs=8", "baselines=scratch")
    ran = studies.run("--space", studies.MAIN_SPACE, "--name", "s", *endless, "--detach", cwd=tmp_path)
    assert ran.code == 0, ran.err
    folder = tmp_path / "runs" / "s"
    studies.wait_for(lambda: list(folder.glob("trials/*/record.json")), "a trial")
    assert "running  " in local("list").out
    assert "state:   running (process " in local("status", "s").out
    for action in ("rm", "resume"):
        refused = local(action, "s")
        assert refused.code == 2 and "'s' is running" in refused.err
    stopped = local("stop", "s")
    assert stopped.code == 0 and "python search/jobs.py resume s --storage runs" in stopped.out, stopped.err
    assert "state:   interrupted" in local("status", "s").out
    assert "interrupted; go on with" in local("logs", "s").out, "it ended as Ctrl-C ends it"
    resumed = local("resume", "s")
    assert resumed.code == 0 and "runs in the background" in resumed.out, resumed.err
    studies.wait_for(lambda: (folder / "console.log").read_text().count("searching") == 2, "the search, again")
    assert local("stop", "s").code == 0
    assert (folder / "console.log").read_text().count("--- session begun") == 2
    assert "interrupted; go on with" in local("logs", "s", "--follow").out
    unknown = local("stop", "t")
    assert unknown.code == 2 and "has no study 't'; there are s" in unknown.err
    removed = local("rm", "s", "--yes")
    assert removed.code == 0 and f"removed: {folder.relative_to(tmp_path)}" in removed.out, removed.err
    assert not folder.exists() and (tmp_path / "runs" / "teachers").exists()
    ran = studies.run(*SIMULATED, "finalists=0", "--name", "s", "--trials", "2", cwd=tmp_path)
    assert ran.code == 0, "the name is free again: " + ran.err
    status = local("status", "s").out
    assert " in this session\n" in status and "ended by: all 2 trials have run" in status
    assert studies.left_behind(tmp_path) == []


def test_the_client_is_connected_to_what_was_asked(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with server(403, b"") as address, pytest.raises(InputError, match=f"{address} refuses the token"):
        connect(address)
