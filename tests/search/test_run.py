import re
import subprocess
import sys
import tempfile

import pytest

import search.command
from search import export, features, report, run, train
from search.settings import Settings
from tests.search.studies import ROOT
from trainables.errors import InputError

FLAGS = [
    "--space", "--name", "--scale", "--smoke", "--dry-run", "--resume", "--warm-start", "--trials", "--epochs",
    "--time-budget", "--seed", "--set", "--data", "--data-dir", "--workers-per-trial", "--gpus-per-trial",
    "--concurrency", "--tracking-uri", "--storage", "--address", "--detach",
]  # fmt: skip


@pytest.fixture
def called(monkeypatch):
    """What `main` hands on, in place of a study."""
    calls = []
    monkeypatch.setattr(search.command, "run_command", lambda arguments, argv: calls.append(arguments) or 0)
    return calls


@pytest.fixture
def raising(monkeypatch, tmp_path):
    """Makes the command end with an error."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def make(error):
        def run_command(arguments, argv):
            raise error

        monkeypatch.setattr(search.command, "run_command", run_command)

    return make


def test_the_flags_are_these_and_no_more():
    flags = {option for action in run.make_parser()._actions for option in action.option_strings}
    assert flags == {*FLAGS, "-h", "--help"}, "a field of the study needs no flag: --set reaches it"


def test_the_time_budget_is_told_as_it_is():
    (help,) = [action.help for action in run.make_parser()._actions if action.dest == "time_budget"]
    assert help == "of the whole study, its final and all sessions included", "as search.budgets counts it"


def test_every_flag_that_is_a_field_reaches_the_settings():
    names = {flag.removeprefix("--").replace("-", "_") for flag in FLAGS}
    of_the_command = {"space", "dry_run", "resume", "set", "detach"}
    assert set(search.command.FLAGS) == names - of_the_command
    assert set(search.command.FLAGS) <= set(Settings.model_fields)


def test_what_is_not_given_is_none_so_that_the_space_decides(called):
    assert run.main(["--space", "s.py"]) == 0
    given = {name: value for name, value in vars(called[0]).items() if name in search.command.FLAGS}
    assert set(given.values()) == {None} and called[0].set == []


def test_set_may_be_repeated_and_take_several_at_once(called):
    run.main(["--space", "s.py", "--set", "a=1", "b=2", "--set", "c=3", "--trials", "4"])
    assert called[0].set == ["a=1", "b=2", "c=3"] and called[0].trials == 4


@pytest.mark.parametrize("flag", ["--tri", "--trial", "--seeds", "--dry", "--data-di", "--work", "--det"])
def test_a_flag_is_written_in_full(called, capsys, flag):
    with pytest.raises(SystemExit) as ended:
        run.main(["--space", "s.py", flag])
    assert ended.value.code == 2 and called == []
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--space"),
        (["--space", "s.py", "--trials", "many"], "--trials: invalid int value: 'many'"),
        (["--space", "s.py", "--scale", "huge"], "--scale"),
        (["s.py", "--space", "s.py"], "unrecognized arguments: s.py"),
    ],
)
def test_flags_that_cannot_be_read_are_bad_input(called, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2 and called == []
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [run, report, train, export, features])
def test_flags_that_cannot_be_read_are_one_line(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--study", "s", "--space", "s.py", "--to", "json", "--out", "x", "--no\nsense"])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    name = command.__name__.replace(".", "/")
    assert captured.err.startswith("error: unrecognized arguments: ") and captured.err.endswith(
        f" --no sense ({name}.py --help tells all flags)\n"
    )


def test_help_is_there_at_once_without_torch_or_ray():
    code = """
import runpy, sys
sys.argv = ["search/run.py", "--help"]
try:
    runpy.run_path("search/run.py", run_name="__main__")
except SystemExit as ended:
    assert ended.code == 0, ended.code
heavy = {"torch", "ray", "timm", "optuna", "mlflow", "pandas", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert all(flag in ran.stdout for flag in FLAGS)


def test_an_unexpected_exception_is_one_line_and_its_traceback_a_file(raising, capsys):
    raising(RuntimeError("the first line\n  and the second"))
    assert run.main(["--space", "s.py"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    said = re.fullmatch(r"error: RuntimeError: the first line and the second; see (\S+)\n", captured.err)
    assert said, captured.err
    with open(said[1]) as file:
        assert "Traceback" in (text := file.read()) and "in run_command" in text


def test_bad_input_is_one_line_a_problem(raising, capsys):
    raising(InputError(["epochs: 0 must be\n at least 1", "no such file"]))
    assert run.main(["--space", "s.py"]) == 2
    assert capsys.readouterr().err == "error: epochs: 0 must be at least 1\nerror: no such file\n"


def test_an_interrupt_is_130(raising, capsys):
    raising(KeyboardInterrupt())
    assert run.main(["--space", "s.py"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
