"""A study that lasts and leaves the cores to others: of a student that sleeps while it is trained."""

from pathlib import Path

from tests.search import studies

MODULE = """
import time
import torch.nn as nn


class Student(nn.Module):
    def __init__(self, num_classes, nap=0.0):
        super().__init__()
        self.nap = nap
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

    def forward(self, images):
        time.sleep(self.nap * self.training)
        return self.head(self.body(images))
"""
BODY = """\
return {{
    "stages": [1],
    "eps": trial.suggest_float("eps", 1.0, 2.0),
    "student_kwargs": {{"nap": trial.suggest_categorical("nap", {naps})}},
}}"""


def write_slow_space(folder: Path, naps: list[float], epochs: int) -> str:
    """A trial for each nap, seconds a step, none of which is stopped early."""
    (folder / "slow_student.py").write_text(MODULE)
    fields = (
        f"trials={len(naps)}, epochs={epochs}, scheduler='none', labels_per_class=60, taps=['body'], "
        "student='slow_student:Student', student_kwargs={}"
    )
    guesses = [{"eps": 1 + index / 100, "nap": nap} for index, nap in enumerate(naps)]
    return studies.write_space(folder, BODY.format(naps=sorted(set(naps))), guesses, fields)
