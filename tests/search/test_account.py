"""What an account keeps of its sessions, however they end."""

import json
import subprocess
import sys

import pytest

from search.account import ACCOUNT, FINALISTS, SEARCH, TEACHER, Account, how_it_ended
from tests.search.studies import ROOT, wait_for
from trainables.errors import InputError


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def on_disk(folder):
    return json.loads((folder / ACCOUNT).read_text())


def test_the_seconds_of_a_session_are_booked_to_its_phases(tmp_path, clock):
    account = Account(tmp_path, clock)
    for phase, seconds in ((TEACHER, 3), (SEARCH, 20), (FINALISTS, 100), (SEARCH, 7)):
        clock.now += seconds
        account.phase(phase)
    clock.now += 1
    assert account.seconds() == {"start-up": 3, "teacher": 20, "search": 101, "finalists": 7, "results": 0}
    assert account.wall_s == 131


def test_lanes_are_counted_while_they_work_each_for_itself(tmp_path, clock):
    account = Account(tmp_path, clock)
    account.lanes_hold(1.0)
    for lanes, seconds in ((0, 10), (1, 5), (3, 2), (0, 50)):
        account.hold(lanes)
        clock.now += seconds
    assert account.gpu_s == 1 * 5 + 3 * 2


def test_pauses_between_sessions_are_nobodys(tmp_path, clock):
    for _ in range(3):
        with Account(tmp_path, clock) as account:
            account.lanes_hold(1.0)
            account.hold(2)
            clock.now += 10
        clock.now += 5000
    again = Account(tmp_path, clock)
    assert (again.wall_s, again.gpu_s) == (30, 60)
    assert len(on_disk(tmp_path)["sessions"]) == 3


def test_each_session_keeps_its_command_and_its_notes(tmp_path):
    with Account(tmp_path, command="run a", notes=["warm start from b"]):
        assert on_disk(tmp_path)["sessions"][0]["command"] == "run a", "a session that is killed has told it"
    with Account(tmp_path, command="run a --resume"):
        pass
    told = [(one["command"], one["notes"]) for one in on_disk(tmp_path)["sessions"]]
    assert told == [("run a", ["warm start from b"]), ("run a --resume", [])]


def test_epochs_of_records_begun_anew_are_kept(tmp_path):
    with Account(tmp_path) as account:
        account.lose(4)
    assert Account(tmp_path).lost_epochs == 4


def test_what_ended_a_study_holds_until_it_goes_on(tmp_path):
    with Account(tmp_path) as account:
        assert how_it_ended(tmp_path) == {}
        account.end("patience", 20, "no better trial in the last 20")
    assert on_disk(tmp_path)["ended_by"] == "no better trial in the last 20"
    assert how_it_ended(tmp_path)["ended_by_field"] == "patience" and how_it_ended(tmp_path)["ended_by_limit"] == 20
    with Account(tmp_path) as account:
        assert account.ended_by == "" and how_it_ended(tmp_path) == {}


def test_a_session_that_is_killed_is_not_lost(tmp_path):
    code = (
        "import sys, time\n"
        "from search.account import SEARCH, Account\n"
        "from pathlib import Path\n"
        "with Account(Path(sys.argv[1])) as account:\n"
        "    account.phase(SEARCH)\n"
        "    account.hold(2)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    try:
        # The thread has written at least once since the phase began.
        wait_for(
            lambda: (tmp_path / ACCOUNT).exists() and on_disk(tmp_path)["sessions"][0]["held_s"].get(SEARCH, 0) > 1,
            "an entry of the search",
            60,
        )
    finally:
        process.kill()
        process.wait()
    seconds = Account(tmp_path, lambda: 0.0).seconds()
    entry = on_disk(tmp_path)["sessions"][0]
    assert seconds[SEARCH] == entry["wall_s"][SEARCH] > 0.5
    assert entry["held_s"][SEARCH] == pytest.approx(2 * entry["wall_s"][SEARCH], rel=0.01)


def test_a_broken_file_is_told(tmp_path):
    (tmp_path / ACCOUNT).write_text("{")
    with pytest.raises(InputError, match=r"account\.json is broken"):
        Account(tmp_path)
    with pytest.raises(InputError, match=r"account\.json is broken"):
        how_it_ended(tmp_path)
