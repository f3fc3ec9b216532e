"""Trials that take all memory: Ray ends their processes, and more than these, and the study goes on."""

import psutil
import pytest

from tests.search import studies
from tests.search.test_faults import records

pytestmark = pytest.mark.long
GB = 2**30
MODULE = """
import torch
import torch.nn as nn

WARM = 10  # steps; the check before a study takes fewer


class Student(nn.Module):
    def __init__(self, num_classes, hungry):
        super().__init__()
        self.hungry, self.steps, self.eaten = hungry, 0, []
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

    def forward(self, images):
        self.steps += self.training
        if self.hungry and self.steps > WARM:
            self.eaten.append(torch.ones(128 * 2**20))
        return self.head(self.body(images))
"""
BODY = """
hungry = trial.suggest_categorical("hungry", [False, True])
return {"stages": [1], "eps": trial.suggest_float("eps", 1.0, 1.2), "student_kwargs": {"hungry": hungry}}
"""
FIELDS = (
    "trials=3, epochs=2, scheduler='none', labels_per_class=60, student='hungry_student:Student', taps=['body'], "
    "student_kwargs={'hungry': False}"
)


def test_trials_that_take_all_memory_fail_with_the_reason_and_no_other_does(tmp_path, monkeypatch):
    (tmp_path / "hungry_student.py").write_text(MODULE)
    space = studies.write_space(
        tmp_path,
        BODY.strip(),
        [{"hungry": True, "eps": 1.0}, {"hungry": True, "eps": 1.1}, {"hungry": False, "eps": 1.0}],
        FIELDS,
    )
    memory = psutil.virtual_memory()
    if memory.available < 10 * GB:
        pytest.skip("10 GB of free memory are needed, of which 8 are taken")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{1 - (memory.available - 8 * GB) / memory.total:.3f}")
    ran = studies.run("--space", space, "--name", "s", "--concurrency", "1", cwd=tmp_path)
    assert ran.code == 0, ran.err + ran.out
    found = records(tmp_path)
    states = {name: record["state"] for name, record in found.items()}
    assert states == {"scratch": "complete", "0": "failed", "1": "failed", "2": "complete"}
    for name in "01":
        reason = found[name]["reason"]
        assert reason.startswith("given up after 2 attempts: its worker of "), reason
        assert "killed for want of memory" in reason and "\n" not in reason, reason
    assert "trial 1 failed" in ran.out and studies.left_behind(tmp_path) == []
