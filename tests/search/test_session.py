"""What a session prints at its end."""

import shlex
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from search import command, session


def plan(**fields):
    return SimpleNamespace(settings=SimpleNamespace(**{"storage": "my dir/runs", "name": "mine", **fields}))


def test_printed_commands_can_be_pasted():
    """Their words are the ones meant, whatever is in a path."""
    words = shlex.split(session._command("run", plan(), "--space", "it's a space.py", "--name", "mine", "--resume"))
    assert words[2:] == ["--space", "it's a space.py", "--name", "mine", "--resume", "--storage", "my dir/runs"]
    assert session._command("train", plan(storage="runs"), "--study", "mine").endswith("search/train.py --study mine")
    command, page = session._ui_lines(f"sqlite:///{Path.cwd()}/my dir/mlflow.db")
    words = shlex.split(command)
    assert words[1:] == ["ui", "--backend-store-uri", "sqlite:///my dir/mlflow.db", "--port", "5000"]
    assert page.startswith("http://127.0.0.1:5000/#/")
    assert session._ui_lines("http://host/mlflow/") == [
        "http://host/mlflow/#/experiments?workflowType=machine_learning"
    ]


def test_printed_commands_have_no_password():
    for uri in ("postgresql://me:secret@host/db", "http://me:secret@host"):
        lines = " ".join(session._ui_lines(uri))
        assert "me:***@host" in lines and "secret" not in lines


def test_how_to_follow_a_study_in_the_background_can_be_pasted(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command.subprocess, "Popen", lambda *words, **more: SimpleNamespace(pid=7))
    folder = tmp_path / "my dir [x]"
    folder.mkdir()
    command._detach([], "mine", folder, Console(width=20))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("follow it:")]
    assert shlex.split(line.removeprefix("follow it:")) == ["tail", "-f", str(folder / "console.log")]
