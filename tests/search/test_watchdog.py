"""When a trial hangs; a whole study's hung worker is in tests/search/cluster."""

from types import SimpleNamespace

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
