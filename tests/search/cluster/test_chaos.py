"""The benchmark `chaos`, short: no more than that it finds what it is to find nothing of."""

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
