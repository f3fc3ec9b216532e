"""Records, and a trial's events as MLflow's side is told them."""

from search.ledger import TrialRecord
from trainables.config import TrialConfig


def make_record(trial_id="7", role="trial", **changes):
    config = TrialConfig(teacher="vit_tiny", student="resmlp_12", epochs=3, **changes).model_dump()
    return TrialRecord(trial_id, role, config, {"eps": 1.0})


def metrics_of(epoch, top1=50.0):
    return {"epoch": epoch, "train/loss": 2.0 / epoch, "val/top1": top1 + epoch, "best/val_top1": top1 + epoch}


def play(writer, record, epochs, end=True):
    writer.trial_started(record)
    for epoch in epochs:
        record.add(metrics_of(epoch))
        writer.trial_epoch(record, record.history[-1])
    if end:
        record.finish()
        writer.trial_ended(record)
