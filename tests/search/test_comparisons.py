import pandas
import pytest

from search.comparisons import branches, distillers_frame, several_distillers
from search.ledger import Ledger, TrialRecord

COST = {"cost/student_params": 11.2e6, "cost/student_flops": 3.6e9}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "trials")


def add(ledger, trial_id, value, *, distiller="ofa", params=0.0, seconds=10.0, role="trial", epochs=2):
    record = TrialRecord(trial_id, role, {"epochs": 2, "distiller": distiller}, {})
    for epoch in range(1, epochs + 1):
        metrics = {"epoch": epoch, "val/top1": value, "time/epoch_s": seconds}
        if epoch == 1:
            metrics |= {**COST, "cost/branch_params": params, "cost/branch_flops": 200 * params}
        record.add(metrics)
    record.finish()
    ledger.save(record)


def test_what_the_branches_cost_and_bought(ledger):
    assert branches(ledger) is None
    add(ledger, "0", 70.0)
    assert branches(ledger) is None
    add(ledger, "1", 74.5, params=1.19e6, seconds=15.0)
    add(ledger, "2", 71.25)
    add(ledger, "3", 73.0, params=0.3e6, seconds=13.0)
    add(ledger, "4", 99.0, params=0.3e6, epochs=1)  # pruned
    add(ledger, "kd", 99.0, role="baseline")
    assert branches(ledger) == (
        "branches: in training, trial 1 has 1.19 M parameters and 238 M FLOPs an image more than the student's own "
        "11.2 M and 3.6 G; it reaches 74.50, the best of 2 without 71.25: they bought 3.25 points for 1.40 times the "
        "time an epoch (one seed each, on the images that chose)"
    )


def test_branches_that_bought_nothing_or_stand_alone(ledger):
    add(ledger, "1", 70.0, params=1e6)
    assert branches(ledger).endswith("no complete trial went without, so what they bought is not known")
    add(ledger, "2", 71.5)
    assert "they bought nothing (-1.50 points) for 1.00 times" in branches(ledger)


def test_the_distillers_side_by_side(ledger):
    add(ledger, "scratch", 60.0, distiller="none", role="baseline")
    add(ledger, "0", 70.0)
    assert not several_distillers(ledger)
    add(ledger, "1", 75.0, distiller="ofa+rsd")
    add(ledger, "2", 72.0)
    add(ledger, "3", 90.0, distiller="crd", epochs=1)
    assert several_distillers(ledger)
    rows = distillers_frame(ledger).to_dict("records")
    assert [(row["distiller"], row["complete"], row["trials"]) for row in rows] == [
        ("ofa+rsd", 1, 1),
        ("ofa", 2, 2),
        ("none", 1, 1),
        ("crd", 0, 1),
    ]
    assert [row["best trial"] for row in rows[:3]] == ["1", "2", "scratch"] and pandas.isna(rows[3]["best trial"])
