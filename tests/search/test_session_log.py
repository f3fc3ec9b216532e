"""What the log of a study's sessions has of those on a terminal, in a pipe and in the background."""

import io

import pytest
from rich.console import Console

from search.live import LiveView, make_view
from search.session_log import BEGUN, CONSOLE, Both, begin, of_last_session, session_log
from tests.search.test_live import make_record


def tell(view, number):
    """What every session tells."""
    with view:
        view.phase("searching")
        trial = make_record(str(number), [90.0] * 20)
        view.trial_started(trial)
        view.trial_ended(trial)
        view.note("a note")


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_the_lines_of_a_session_in_the_foreground_are_kept(tmp_path, terminal):
    for number in range(2):
        with (tmp_path / "screen").open("w") as screen:
            console = Console(file=screen, width=80, force_terminal=terminal)
            log = session_log(tmp_path, console)
            view = make_view(console, 3, log=log)
            assert isinstance(view, LiveView) == terminal
            tell(view, number)
            Both(console, log).print("ended by: all have run")
    text = (tmp_path / CONSOLE).read_text()
    assert text.count(BEGUN) == 2 and text.startswith(BEGUN)
    lines = [line.removeprefix("[00:00] ") for line in of_last_session(text).splitlines()]
    assert [line.split("  ")[0] for line in lines] == [
        "searching",
        "trial 1 started",
        "trial 1 complete",
        "a note",
        "ended by: all have run",
    ]
    assert "\x1b" not in text


def test_a_session_in_the_background_is_kept_once(tmp_path):
    begin(tmp_path)
    with (tmp_path / CONSOLE).open("a") as lines:
        console = Console(file=lines, width=80)
        log = session_log(tmp_path, console)
        tell(make_view(console, 3, log=log), 0)
        Both(console, log).print("the end")
    text = (tmp_path / CONSOLE).read_text()
    assert [text.count(part) for part in (BEGUN, "a note", "the end")] == [1, 1, 1]


def test_the_log_of_an_earlier_version_is_one_session():
    assert of_last_session("a\nb\n") == "a\nb\n"


def test_a_full_disk_ends_no_session(tmp_path):
    (tmp_path / CONSOLE).symlink_to("/dev/full")
    with (tmp_path / "screen").open("w") as screen:
        log = session_log(tmp_path, Console(file=screen, width=80))
        view = make_view(Console(file=io.StringIO(), width=80), 3, log=log)
        tell(view, 0)
    assert "a note" in view.console.file.getvalue()
