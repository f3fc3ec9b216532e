"""What the driver does with each report, beside the real ledger."""

from types import SimpleNamespace

from search.ledger import Ledger, TrialRecord
from search.mirroring import Plain
from search.proxy import LATENCY, StudyCallback
from trainables.files import WARNINGS


class Quiet:
    """Stands for those that are only told: tracking, view, budgets, and the broker."""

    def __getattr__(self, name):
        return Quiet()

    def __call__(self, *arguments, **keywords):
        return None


def test_a_student_has_one_latency_in_a_study(tmp_path):
    """Each lane measures it, as busy as the machine is: a front over that would be one of noise."""
    ledger = Ledger(tmp_path)
    for trial_id, student in (("0", "a"), ("1", "b"), ("2", "a"), ("3", "a")):
        config = {"epochs": 2, "student": student, "student_kwargs": {}, "img_size": 16}
        ledger.save(TrialRecord(trial_id, "trial", config, {}))
    quiet = Quiet()
    callback = StudyCallback(quiet, ledger, quiet, quiet, quiet, Plain())

    def report(callback, trial_id, latency):
        trial = SimpleNamespace(config={"trial_id": trial_id})
        callback.on_trial_result(0, [], trial, {"epoch": 1, "val/top1": 50.0, LATENCY: latency})
        return ledger.records[trial_id].metric(LATENCY)

    assert [report(callback, *one) for one in (("0", 3.0), ("1", 7.0), ("2", 9.0))] == [3.0, 7.0, 3.0]
    ledger = Ledger(tmp_path)  # another session
    assert report(StudyCallback(quiet, ledger, quiet, quiet, quiet, Plain()), "3", 9.0) == 3.0


def test_a_lanes_warning_is_shown_once_and_is_no_metric(tmp_path):
    ledger, shown, quiet = Ledger(tmp_path), [], Quiet()
    view = SimpleNamespace(note=shown.append, trial_epoch=lambda record: None)
    callback = StudyCallback(quiet, ledger, quiet, view, quiet, Plain())
    for trial_id in ("0", "1"):
        ledger.save(TrialRecord(trial_id, "trial", {"epochs": 2, "student": "a"}, {}))
        result = {"epoch": 1, "val/top1": 50.0, "teacher/stored": 0.5, WARNINGS: ["the disk is full", "it is late"]}
        callback.on_trial_result(0, [], SimpleNamespace(config={"trial_id": trial_id}), result)
        assert ledger.records[trial_id].history == [{"epoch": 1, "val/top1": 50.0, "teacher/stored": 0.5}]
    assert shown == ["the disk is full", "it is late"]
