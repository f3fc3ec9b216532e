import time
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from search.ledger import TrialRecord
from search.live import LiveView, PlainView, clock, make_view, settings


def make_record(trial_id, values=(), role="trial", error=None, epochs=20, **config):
    config = {"epochs": epochs, "eps": 1.234, "temperature": 2.0, "stages": [1, 4]} | config
    record = TrialRecord(trial_id, role, config, {})
    for epoch, value in enumerate(values, 1):
        record.add({"epoch": epoch, "val/top1": value})
    if len(values) == epochs or error:
        record.finish(error=error)
    return record


def play(view):
    """A study with everything that a view shows."""
    with view:
        view.phase("fitting the teacher: epoch 3/20, holdout 91.20")
        for name, value in (("scratch", 91.02), ("kd", 92.5)):
            baseline = make_record(name, [value] * 20, role="baseline")
            view.trial_started(baseline)
            view.trial_ended(baseline)
        for number, value in enumerate([93.42, 94.1, 90.0]):
            trial = make_record(str(number), [value] * 20)
            view.trial_started(trial)
            view.trial_ended(trial)
        pruned = make_record("3", [80.0, 81.5])
        pruned.finish()
        view.trial_ended(pruned)
        view.trial_ended(make_record("4", error="out of memory on the device\n while doing something " + "long " * 40))
        for number in range(5, 18):
            trial = make_record(str(number), [70.0] * (number - 5), eps=[1.0, 1.5, 2.25], stages=[1, 2])
            view.trial_started(trial)
            view.trial_epoch(trial)
        view.note("a note that stays")
    return view


def make_console(width, terminal):
    return Console(file=StringIO(), width=width, height=60, force_terminal=terminal, color_system=None, _environ={})


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_view_fits_the_terminal(width):
    view = play(make_view(make_console(width, True), 30, study="vit_to_mlp", pair="vit_tiny → resmlp_12"))
    assert isinstance(view, LiveView)
    console = make_console(width, False)
    console.print(view.render())
    text = console.file.getvalue()
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert len(text.splitlines()) < 36
    for part in ("vit_to_mlp", "7/30", "13 running", "5 complete", "1 pruned", "1 failed", "10 waiting", "about"):
        assert part in text
    for part in ("trial 1", "94.10", "+3.08 points", "+1.60 points", "81.50", "eps 1,1.5,2.25 T 2 stages 1,2"):
        assert part in text
    assert "and 5 more" in text
    assert "a note that stays" in view.console.file.getvalue()


def test_an_empty_live_view_renders():
    view = make_view(make_console(80, True), 4, study="s")
    console = make_console(80, False)
    console.print(view.render())
    assert "unknown left" in console.file.getvalue()
    assert "4 waiting" in console.file.getvalue()


def test_plain_lines_tell_events_and_no_epochs():
    view = play(make_view(make_console(80, False), 30, study="vit_to_mlp"))
    assert isinstance(view, PlainView)
    lines = view.console.file.getvalue().splitlines()
    assert "[00:00] trial 0 complete  val/top1 93.42  (best 93.42, scratch 91.02, kd 92.50)  " in lines[6]
    assert lines[6].endswith("eps=1.23 temperature=2 stages=1,4")
    assert lines[0] == "[00:00] fitting the teacher: epoch 3/20, holdout 91.20"
    assert "trial 3 pruned  val/top1 81.50" in lines[11]
    assert lines[11].endswith("stopped early by the scheduler at epoch 2")
    assert lines[12].startswith("[00:00] trial 4 failed  val/top1 -")
    assert lines[-1] == "[00:00] a note that stays"
    assert len(lines) == 1 + 2 * 2 + 3 * 2 + 2 + 13 + 1


def of_loss(trial_id, value, role="trial"):
    record = TrialRecord(trial_id, role, {"epochs": 1, "eps": 1.0}, {}, {"val/loss": False})
    record.add({"epoch": 1, "val/loss": value, "val/top1": 50.0})
    record.finish()
    return record


@pytest.mark.parametrize("terminal", [True, False])
def test_the_study_s_own_objective_is_told(terminal):
    view = make_view(make_console(80, terminal), 9, finished=[of_loss("0", 0.5), of_loss("1", 0.25)])
    view.trial_ended(of_loss("kd", 0.3, "baseline"))
    view.trial_ended(of_loss("2", 0.4))
    assert view.best.trial_id == "1"
    if terminal:
        console = make_console(80, False)
        console.print(view.render())
        text = console.file.getvalue()
        assert "val/loss" in text and "val/top1" not in text
        assert "best is -0.05" in text and "points" not in text
    else:
        assert "trial 2 complete  val/loss 0.4  (best 0.25, kd 0.3)" in view.console.file.getvalue()


def test_a_phase_is_told_once_in_plain_lines():
    view = make_view(make_console(80, False), 1)
    for text in ("fitting: epoch 1", "fitting: epoch 2", "", "searching", "searching"):
        view.phase(text)
    lines = view.console.file.getvalue().splitlines()
    assert [line.split("] ")[1] for line in lines] == ["fitting: epoch 1", "searching"]


def test_trials_of_an_earlier_session_count_but_tell_no_speed():
    view = make_view(make_console(80, True), 4, finished=[make_record("0", [90.0] * 20)])
    assert view.best.trial_id == "0"
    assert view.left is None


def test_the_time_left_comes_from_finished_trials(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("search.live.time.monotonic", lambda: now[0])
    view = make_view(make_console(80, False), 6)
    trials = [make_record(str(number), [90.0] * 20) for number in range(3)]
    view.trial_started(trials[0])
    view.trial_started(trials[1])
    now[0] = 10.0
    view.trial_ended(trials[0])
    view.trial_ended(trials[1])
    view.trial_started(trials[2])
    now[0] = 14.0
    assert view.left == (6 + 3 * 10) / 2


def test_clock():
    assert [clock(0.9), clock(83), clock(3723)] == ["00:00", "01:23", "1:02:03"]


@pytest.mark.parametrize(
    ("distiller", "text"),
    [
        ("ofa", "eps=1.23 temperature=2 stages=1,4"),
        ("kd", "distiller=kd temperature=2"),
        ("rsd", "distiller=rsd rsd_kappa=0.02"),
        ("ofa+fitnet", "distiller=ofa+fitnet eps=1.23 temperature=2 stages=1,4"),
    ],
)
def test_a_trials_settings_are_those_that_its_distiller_reads(distiller, text):
    record = make_record("7", distiller=distiller, rsd_kappa=0.02)
    record.params = {"rsd_kappa@rsd": 0.02} if distiller == "rsd" else {}
    assert settings(record, PlainView.NAMES, "=") == text


def test_lanes_that_wait_are_told_of_once_for_each_reason():
    console = make_console(120, False)
    view = make_view(console, 3)
    since = time.monotonic() - 65
    for up, waiting, reason in ((0, 2, "no node"), (1, 1, "no node"), (1, 1, "the maximum"), (2, 0, ""), (2, 0, "")):
        view.lanes(up, waiting, since, reason)
    told = [line.split("] ")[1] for line in console.file.getvalue().splitlines()]
    assert told == [
        "2 of 2 lane(s) wait, 01:05: no node",
        "1 of 2 lane(s) wait, 01:05: the maximum",
        "no lane waits any more",
    ]
    live = make_view(make_console(80, True), 3)
    with live:
        live.lanes(1, 2, since, "the autoscaler is starting 2 gpu")
        console = make_console(80, False)
        console.print(live.render())
    assert "2 of 3 lane(s) wait, 01:05: the autoscaler is starting 2 gpu" in console.file.getvalue()
