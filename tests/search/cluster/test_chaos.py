"""The benchmark `chaos`, short: no more than that it finds what it is to find nothing of."""

import json
import math

import pytest

from tests.benchmarks import chaos


@pytest.mark.long
def test_random_kills_lose_double_and_change_nothing():
    figures = chaos.measure(faults=3, trials=2, epochs=8, nap=0.2)
    assert chaos.wrong(figures, faults=3) == [], figures


def test_what_must_not_be_is_told():
    figures = dict.fromkeys(chaos.ZEROS, 0.0) | {"faults": 20.0}
    assert chaos.wrong(figures) == []
    assert chaos.wrong(figures | {"trials_lost": 1.0}) == ["trials_lost is 1, not 0"]
    assert "ended after 3 of 20 faults" in chaos.wrong(figures | {"faults": 3.0})[0]


def test_what_faults_cost_is_told_where_it_is_too_much(tmp_path):
    times = {"0": [0, 10, 20, 62, 72], "1": [0, 10, 20, 30, 130, 140]}  # an epoch takes ten seconds
    for name, ends in times.items():
        folder = tmp_path / "runs" / "s" / "trials" / name
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps({"times": ends}))
    faults = [(25.0, "worker"), (40.0, "driver"), (50.0, "worker")]
    assert chaos.lost_s(tmp_path, faults[:1], "worker") == 32
    assert chaos.lost_s(tmp_path, faults, "driver") == 61, "the median, as others fell into both epochs"
    assert math.isnan(chaos.lost_s(tmp_path, faults, "broker"))
    figures = {"worker_death_s": 32.0, "driver_death_s": math.nan}
    assert chaos.missed(figures) == ["worker_death_s is 32, not 30 at most"]
