"""When a trial hangs; a whole study's hung worker is in tests/search/cluster."""

import asyncio
from types import SimpleNamespace

import pytest
import ray

from search.broker import Broker
from search.ledger import Ledger, TrialRecord
from search.watchdog import Watchdog


def test_a_trial_hangs_after_many_of_the_studys_median_epochs_or_of_its_own(tmp_path):
    ledger = Ledger(tmp_path)
    settings = SimpleNamespace(hang_factor=10.0, hang_min_s=30.0)
    watchdog = Watchdog(None, ledger, settings, print)
    record = TrialRecord("0", "trial", {"epochs": 9}, {})
    for epoch, seconds in enumerate((1.0, 2.0, 50.0), 1):
        assert watchdog.limit_s("0") is None, "nobody knows how long an epoch takes"
        record.add({"epoch": epoch, "time/epoch_s": seconds})
        ledger.save(record)
    assert watchdog.limit_s("0") == 500.0
    assert watchdog.limit_s("1") == 30.0
    settings.hang_min_s = 5.0
    assert watchdog.limit_s("1") == 20.0
    assert Watchdog(None, Ledger(tmp_path), settings, print).limit_s("1") == 20.0, "an earlier session's count"


class Called:
    """A broker that is called as an actor, without Ray."""

    def __init__(self, *arguments):
        self._broker = Broker(*arguments)

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *arguments: asyncio.run(getattr(self._broker, name)(*arguments)))


@pytest.mark.parametrize("restarted", [False, True])
def test_what_hangs_is_killed_and_told_though_the_broker_was_started_again(tmp_path, monkeypatch, restarted):
    killed, told, journal = [], [], tmp_path / "broker.jsonl"
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "kill", killed.append)
    broker = Called(journal)
    for name in "ab":
        broker.submit.remote(name, {"kind": "trial"})
    broker.take.remote(0, {"pid": 1, "handle": "of a"}, 1)
    broker.take.remote(1, {"pid": 2}, 1)  # nobody can kill it
    if restarted:
        broker = Called(journal)
    watchdog = Watchdog(broker, Ledger(tmp_path), SimpleNamespace(hang_factor=1.0, hang_min_s=0.0), told.append)
    watchdog._took.extend([0.0] * 3)
    watchdog._look()
    assert killed == ["of a"]
    assert len(told) == 1 and told[0].startswith("trial a: it hung: no report for 0 s")
