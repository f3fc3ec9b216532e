"""What is told of a study's end and of its stalls, to real commands and a real server."""

import http.server
import json
import os
import sys
import threading

import pytest

from search import notify
from search.notify import DONE, FAILED, RUNNING, STALLED, Notifier, read_target
from search.settings import resolve
from search.study import Scale, Study
from search.tracking.credentials import NOTIFY_URL, SECRETS, TYPED, reminder, without_secrets, words_without
from tests.search import studies
from trainables.errors import InputError

SCRIPT = """
import json, os, sys
with open(sys.argv[1], "a") as file:
    file.write(json.dumps([os.environ[f"OFAKD_{name}"] for name in ("STUDY", "STATE", "MESSAGE")]) + "\\n")
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (*SECRETS, TYPED):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards, whatever the test sets
        monkeypatch.delenv(name)


@pytest.fixture
def command(tmp_path):
    """A command that keeps what it is told, and a function that reads that."""
    script, kept = tmp_path / "it's told.py", tmp_path / "told"
    script.write_text(SCRIPT)

    def told():
        return [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []

    return lambda code=0: f'{sys.executable} "{script}" {kept} {code}', told


@pytest.fixture
def webhook():
    """The address of a server, and a list that it fills with what it was sent."""
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(404 if "wrong" in self.path else 200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", sent
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_command_is_told_by_its_environment(command):
    make, told = command
    notes = []
    Notifier(read_target(make()), "mine", None, notes.append).tell(DONE, "done: 93 %; $(touch x) `y`")
    assert told() == [["mine", "done", "done: 93 %; $(touch x) `y`"]] and notes == []


def test_a_webhook_gets_json(webhook):
    address, sent = webhook
    Notifier(f"{address}/hook", "mine", None, pytest.fail).tell(FAILED, "failed: the disk is full")
    expected = {"study": "mine", "state": "failed", "text": "mine: failed: the disk is full"}
    assert sent == [("/hook", "application/json", expected)]


def test_what_does_not_arrive_is_noted_once_and_never_raised(command, webhook, monkeypatch):
    make, told = command
    notes = []
    notifier = Notifier(make(3), "mine", None, notes.append)
    notifier.tell(DONE, "done")
    notifier.tell(DONE, "done")
    assert len(told()) == 2 and notes == ["notify: it was not told 'done' (the command ended with 3)"]
    monkeypatch.setattr(notify, "LIMIT_S", 0.5)
    for target, said in (
        (f'{sys.executable} -c "import time; time.sleep(600)"', "longer than"),
        (f"{webhook[0]}/wrong/s3cret", "HTTP Error 404"),
        ("http://127.0.0.1:1/s3cret", "refused"),
        ("http://[s3cret", ""),
    ):
        notes = []
        Notifier(target, "mine", None, notes.append).tell(DONE, "done")
        assert len(notes) == 1 and said in notes[0] and "s3cret" not in notes[0], notes


def test_a_stall_is_told_once_and_so_is_that_it_goes_on(command):
    make, told = command
    seconds = [0.0]
    with Notifier(read_target(make()), "mine", 0.05, pytest.fail, clock=lambda: seconds[0]) as notifier:
        for round in (1, 2):
            seconds[0] += 7000
            studies.wait_for(lambda count=2 * round - 1: len(told()) == count, "the stall's notification")
            seconds[0] += 7000
            notifier.report("a record")
            studies.wait_for(lambda count=2 * round: len(told()) == count, "that it goes on")
    states = [state for _, state, _ in told()]
    assert states == [STALLED, RUNNING, STALLED, RUNNING]
    assert told()[0][2] == "stalled: no report for 1.9 h"


def test_a_study_with_reports_does_not_stall(command):
    make, told = command
    with Notifier(read_target(make()), "mine", 1e6, pytest.fail) as notifier:
        notifier.report()
    assert told() == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("env:NOT_SET_HERE", "notify: NOT_SET_HERE is not set"),
        ("no-such-command now", "notify: there is no command 'no-such-command'"),
        ("mail 'torn", "notify: its command cannot be read"),
        ("' '", "notify: there is no command ' '"),
    ],
)
def test_what_could_never_be_told_is_refused(value, said):
    with pytest.raises(InputError) as error:
        read_target(value)
    assert str(error.value).startswith(said)


def test_the_target_may_be_in_the_environment(monkeypatch):
    monkeypatch.setenv("WHERE", "https://host/hook\n")
    assert read_target("env:WHERE") == "https://host/hook"
    assert read_target(None) is None


def test_a_webhook_that_is_typed_goes_to_the_environment():
    url = "https://hooks.host/s3cret"
    for words in (["--set", f"notify={url}"], [f"--set=notify='{url}'"], ["--set", "a=1", f'notify="{url}"']):
        os.environ.pop(NOTIFY_URL, None)
        clean = words_without(words)
        assert not any("s3cret" in word for word in clean) and os.environ[NOTIFY_URL] == url
        assert clean[-1].endswith(f"notify=env:{NOTIFY_URL}") and len(clean) == len(words)
    assert without_secrets({}, [f"notify={url}"]) == ({}, [f"notify=env:{NOTIFY_URL}"])
    assert words_without(["--set", "notify=mail -s x me", "b=2"]) == ["--set", "notify=mail -s x me", "b=2"]
    assert reminder() == f"the webhook is kept nowhere: give it again, or set {NOTIFY_URL}"


def test_a_space_file_has_no_webhook():
    study = Study(space=lambda trial: {}, scales={"embedded": Scale(teacher="a", student="b", notify="https://s3cret")})
    with pytest.raises(InputError, match=r"^notify: a webhook's URL would be kept .* write env:NAME") as error:
        resolve(study, {"name": "mine", "space": "s.py"}, [])
    assert "s3cret" not in str(error.value)


@pytest.mark.long
def test_a_study_tells_of_its_end(command, tmp_path, webhook):
    make, told = command
    simulated = ("--space", studies.MAIN_SPACE, "--trials", "2", "--set", "simulate=synthetic", "finalists=0")
    ran = studies.run(*simulated, f"notify={make()}", "--name", "a", cwd=tmp_path)
    assert ran.code == 0, ran.err
    ((study, state, message),) = told()
    assert (study, state) == ("a", "done") and message.startswith("done: SIMULATED")
    address, sent = webhook
    ran = studies.run(*simulated, f"notify={address}/s3cret", "--name", "b", "--trials", "3", cwd=tmp_path)
    assert ran.code == 0 and [content["state"] for _, _, content in sent] == ["done"], ran.err
    kept = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert kept == [] and "s3cret" not in ran.out + ran.err
    assert f"notify: env:{NOTIFY_URL}" in (tmp_path / "runs" / "b" / "settings.yaml").read_text()
    again = studies.run(*simulated, "--resume", "--name", "b", cwd=tmp_path)
    assert again.code == 2 and f"notify: {NOTIFY_URL} is not set" in again.err
