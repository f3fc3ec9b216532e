"""What goes when a study uses more of the disk than it may, and what stays."""

import os
import time
from pathlib import Path

import pytest

from search import housekeeping
from search.housekeeping import WEIGHTS, Housekeeping
from search.ledger import COMPLETE, PRUNED, Ledger, TrialRecord
from tests.search.conftest import store  # noqa: F401 - a fixture
from tests.search.studies import wait_for
from trainables.remote import Remote
from trainables.teacher_store.parts import ABOUT

KB = 1000


@pytest.fixture
def study(tmp_path):
    """A study of four ended trials and one that runs, 10 kB each, beside answers of others and of its own."""
    ledger = Ledger(tmp_path / "s" / "trials")
    ways = {"0": (COMPLETE, 90.0), "1": (COMPLETE, 80.0), "2": (COMPLETE, 70.0), "3": (PRUNED, 60.0), "4": (None, 50.0)}
    for trial_id, (state, value) in ways.items():
        record = TrialRecord(trial_id, "trial", {"epochs": 1}, {})
        record.add({"epoch": 1, "val/top1": value})
        record.state = state or record.state
        ledger.save(record)
        (ledger.trial_folder(trial_id) / WEIGHTS).write_bytes(bytes(10 * KB))
        (ledger.trial_folder(trial_id) / "checkpoint.pt").write_bytes(bytes(KB))
    for name, age in (("old", 2e6), ("older", 3e6)):
        write_answers(tmp_path, name, age)
    return ledger


def write_answers(folder, name, age=0.0):
    place = folder / "store" / name
    place.mkdir(parents=True)
    (place / "00000-000.logits").write_bytes(bytes(10 * KB))
    (place / ABOUT).touch()
    about = os.stat(place / ABOUT)
    os.utime(place / ABOUT, (about.st_mtime - age, about.st_mtime - age))


def tidied(ledger, folder, budget):
    told = []
    keeper = Housekeeping(str(folder / "s"), str(folder / "store"), ledger, budget, 1, told.append)
    write_answers(folder, "own")
    keeper.tidy()
    keeper.tidy()
    weights = [trial_id for trial_id in ledger.records if (ledger.trial_folder(trial_id) / WEIGHTS).exists()]
    assert all((ledger.trial_folder(trial_id) / "checkpoint.pt").exists() for trial_id in ledger.records)
    return weights, sorted(path.name for path in (folder / "store").iterdir()), told


@pytest.mark.parametrize(
    ("budget", "weights", "answers", "warned"),
    [
        (200 * KB, ["0", "1", "2", "3", "4"], ["old", "older", "own"], False),
        (85 * KB, ["0", "1", "2", "4"], ["old", "older", "own"], False),
        (65 * KB, ["0", "4"], ["old", "older", "own"], False),
        (55 * KB, ["0", "4"], ["old", "own"], False),
        (20 * KB, ["0", "4"], ["own"], True),
    ],
    ids=["enough", "the-worst", "all-but-the-best", "answers-used-longest-ago", "too-little"],
)
def test_what_is_needed_least_goes_first_and_no_more_than_must(study, tmp_path, budget, weights, answers, warned):
    found = tidied(study, tmp_path, budget)
    assert found[:2] == (weights, answers)
    assert bool(found[2]) == warned and len(found[2]) <= 1


def test_in_a_bucket_as_well(study, tmp_path, store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(housekeeping, "CLOCKS_S", 0.0)
    monkeypatch.setattr(housekeeping, "IN_USE_S", 0.0)
    bucket = Remote(store.url)

    def upload(folder):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            bucket.push(path, str(path.relative_to(tmp_path)))

    def next_second(now):  # a bucket's files have no finer time
        wait_for(lambda: int(time.time()) > int(now), "the next second")

    upload(tmp_path / "s")
    upload(tmp_path / "store")
    next_second(time.time())
    told = []
    keeper = Housekeeping(f"{store.url}/s", f"{store.url}/store", study, 20 * KB, 1, told.append)
    next_second(time.time())
    write_answers(tmp_path, "own")
    upload(tmp_path / "store" / "own")
    keeper.tidy()
    kept = [Path(name) for name in bucket.files()]
    assert {path.parts[1] for path in kept if path.parts[0] == "store"} == {"own"}
    assert sorted(path.parts[2] for path in kept if path.name == WEIGHTS) == ["0", "4"]
    assert len([path for path in kept if path.name == "checkpoint.pt"]) == 5 and len(told) == 1
