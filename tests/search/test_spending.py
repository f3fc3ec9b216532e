import pytest

from search.spending import by_part, by_phase, duration
from tests.search.report_studies import Made, rising


@pytest.fixture
def made(tmp_path):
    made = Made(tmp_path, gpus_per_trial=2, price_per_gpu_hour=3.0, workers_per_trial=2)
    made.trial(rising(70.0))
    made.trial(rising(60.0)[:3])
    made.baseline("kd", rising(65.0))
    made.final("0", [70.0, None])
    return made


def rows(frame):
    return {row[0]: list(row[1:]) for row in frame.itertuples(index=False)}


def test_durations_as_people_say_them():
    assert [duration(seconds) for seconds in (0.4, 59.6, 185, 3600 * 26 + 61)] == [
        "0 s",
        "1 min 00 s",
        "3 min 05 s",
        "26 h 01 min",
    ]


def test_the_time_of_what_was_trained_and_its_price(made):
    """An epoch takes a minute and two GPUs at 3 an hour: 0.1 an epoch."""
    assert rows(by_part(made.ledger, made.settings, {})) == {
        "trials": [2, 12, "12 min 00 s", "0.40", "1.20"],
        "baselines": [1, 9, "9 min 00 s", "0.30", "0.90"],
        "finalists": [2, 9, "9 min 00 s", "0.30", "0.90"],
        "all": [5, 30, "30 min 00 s", "1.00", "3.00"],
    }


def test_packed_trials_share_their_lanes_gpus(tmp_path):
    """An epoch takes a minute: a quarter of a GPU for a trial, a whole one for the teacher's fitting."""
    made = Made(tmp_path, gpus_per_trial=0.25, pack=4)
    made.trial(rising(70.0)[:4])
    account = {"sessions": [{"held_s": {"teacher": 3600.0}, "wall_s": {"teacher": 3600.0}}]}
    assert [row[-1] for row in rows(by_part(made.ledger, made.settings, account)).values()] == ["1.00", "0.02", "1.02"]


def test_the_account_adds_the_teacher_and_the_phases(made):
    made.account()
    account = made.read_account()
    parts = rows(by_part(made.ledger, made.settings, account))
    assert parts["teacher"] == [None, None, "30 s", "0.02", "0.05"]
    assert parts["all"][2] == "30 min 30 s"
    phases = rows(by_phase(made.ledger, made.settings, account))
    assert phases["search"] == ["11 min 00 s", "18 min 40 s", "3 min 20 s", "0.62", "1.87"], "two lanes, two sessions"
    assert phases["start-up"] == ["10 s", None, None, None, None]
    assert phases["all"][0] == "16 min 45 s"


def test_without_gpus_there_is_no_price(tmp_path):
    made = Made(tmp_path)
    made.trial(rising(70.0))
    assert list(by_part(made.ledger, made.settings, {}).columns) == ["part", "runs", "epochs", "training"]


def test_a_study_without_an_account_tells_its_span(made):
    records = list(made.ledger.records.values())
    for place, record in enumerate(records):
        record.started, record.ended = 1000.0 + place, 1000.0 + 1200.0
    (row,) = by_phase(made.ledger, made.settings, {}).itertuples(index=False)
    assert list(row) == ["first start to last end", "20 min 00 s", "30 min 00 s", "10 min 00 s", "1.00", "3.00"]
