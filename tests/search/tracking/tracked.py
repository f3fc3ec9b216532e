"""A study's folder and its trials' events, as MLflow's side finds and is told them."""

from pathlib import Path

from search.ledger import Ledger, TrialRecord
from search.tracking.store import connect
from search.tracking.study_run import StudyRun
from trainables.config import TrialConfig

STUDY = "a study"


def make_record(trial_id="7", role="trial", **changes):
    config = TrialConfig(teacher="vit_tiny", student="resmlp_12", epochs=3, **changes).model_dump()
    return TrialRecord(trial_id, role, config, {"eps": 1.0})


def metrics_of(epoch, top1=50.0):
    return {"epoch": epoch, "train/loss": 2.0 / epoch, "val/top1": top1 + epoch, "best/val_top1": top1 + epoch}


def begin(folder: Path, params=None, adopts=False) -> StudyRun:
    """A session of the study in that folder, as far as MLflow is concerned."""
    folder.mkdir(parents=True, exist_ok=True)
    run = StudyRun.read(folder) or StudyRun(folder, folder.name, adopts=adopts)
    run.begin({"pair": "a-b"}, params or {"trials": 4}, {"settings/space.py": "x = 1"})
    return run


class Told:
    """A folder's ledger, with each change told to who keeps MLflow up to date (`Writer.tell`)."""

    def __init__(self, folder: Path, tell=lambda place, live=False: None):
        self.ledger, self.tell = Ledger(folder / "trials"), tell

    def started(self, record):
        self.ledger.save(record)
        self.tell(f"trials/{record.trial_id}", True)

    def changed(self, record):
        self.ledger.save(record)
        self.tell(f"trials/{record.trial_id}")

    def play(self, record, epochs, end=True):
        """A trial that reports those epochs, and ends."""
        self.started(record)
        for epoch in epochs:
            record.add(metrics_of(epoch))
            self.changed(record)
        if end:
            record.finish()
            self.changed(record)


class Seen:
    """What MLflow has of the study."""

    def __init__(self, uri: str, study: str = STUDY):
        self.client = connect(uri)
        self.experiment = self.client.get_experiment_by_name(study)

    def runs(self, query=""):
        return list(self.client.search_runs([self.experiment.experiment_id], query))

    @property
    def parent(self):
        (parent,) = self.runs("tags.role = 'study'")
        return parent

    @property
    def children(self):
        """By trial; each is there once."""
        runs = self.runs(f"tags.`mlflow.parentRunId` = '{self.parent.info.run_id}'")
        assert len({run.data.tags["trial_id"] for run in runs}) == len(runs)
        return {run.data.tags["trial_id"]: run for run in runs}

    def steps(self, run, key="val/top1"):
        return [entry.step for entry in self.client.get_metric_history(run.info.run_id, key)]

    def points(self, run):
        """All its points: (metric, step, value, time in ms)."""
        return sorted(
            (key, entry.step, entry.value, entry.timestamp)
            for key in run.data.metrics
            for entry in self.client.get_metric_history(run.info.run_id, key)
        )


def points_of(record):
    """What `Seen.points` is to give for a record."""
    return sorted(
        (key, int(entry["epoch"]), value, int(when * 1000))
        for entry, when in zip(record.history, record.times, strict=True)
        for key, value in entry.items()
        if key != "epoch"
    )
