"""Files that a trial leaves in its folder and that others touch; imports no torch, as the driver's side needs none."""

from pathlib import Path

WARNINGS = "warnings"  # in an epoch's report: lines for the user
LEAVE = "leave"  # the broker's answer to a report: the trial goes on elsewhere, and the lane quits
CHECKPOINT = "checkpoint.pt"
RECORD = "record.json"  # the study's own, see `search.ledger`
STUDENT, TEST = "student.safetensors", "test.npz"  # of the last epoch: its weights, and a finalist's predictions
LOG = "log.txt"  # what happened in its worker, see `trial_log`


def drop_checkpoint(folder: Path) -> None:
    """Removes the checkpoint of a trial that ended."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
