"""The learning rate at each update."""

import pytest
import torch
from timm.scheduler import create_scheduler_v2

from trainables.config import TrialConfig
from trainables.optim import make_scheduler

STEPS = 5  # an epoch


def rates(**fields):
    """The rate of every update of a trial."""
    config = TrialConfig(**{"teacher": "t", "student": "s", "epochs": 9, "lr": 1.0, "min_lr": 0.01, **fields})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = make_scheduler(optimizer, config, STEPS)
    found = []
    for step in range(config.epochs * STEPS):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    "fields", [{}, {"warmup_epochs": 2, "warmup_lr": 1e-3}, {"sched": "step", "decay_epochs": 2}, {"sched": "poly"}]
)
def test_without_restarts_it_is_timms_schedule_to_the_bit(fields):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    options = {"sched": "cosine", "warmup_lr": 5e-7, "decay_epochs": 30, **fields}
    whole, _ = create_scheduler_v2(
        optimizer, num_epochs=9, min_lr=0.01, decay_rate=0.1, step_on_epochs=False, updates_per_epoch=STEPS, **options
    )
    expected = []
    for step in range(9 * STEPS):
        whole.step_update(step)
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(**fields) == expected
    assert len(set(expected)) > 4, "the test would see little"


def test_each_piece_is_the_schedule_at_its_own_length():
    found = rates(sched_restarts=[3, 5])
    pieces = [found[: 3 * STEPS], found[3 * STEPS : 5 * STEPS], found[5 * STEPS :]]
    for piece, epochs in zip(pieces, (3, 2, 4), strict=True):
        assert piece == pytest.approx(rates(epochs=epochs))
        assert piece[0] == 1.0 and piece[-1] < 0.05, "it is at its floor where a rung looks"


def test_only_the_first_piece_warms_up():
    found = rates(warmup_epochs=1, warmup_lr=0.001, sched_restarts=[3])
    assert found[0] == pytest.approx(0.001) and found[3 * STEPS] == 1.0


def test_steps_come_sooner_in_a_shorter_piece():
    found = rates(sched="step", decay_epochs=3, decay_rate=0.1, sched_restarts=[6])
    assert [found[epoch * STEPS] for epoch in range(9)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 1, 0.1, 0.01])


def test_a_resumed_trial_asks_for_its_own_rate():
    assert rates(sched_restarts=[4, 20]) == rates(sched_restarts=[4]), "a restart after the end is none"
    config = TrialConfig(teacher="t", student="s", epochs=9, lr=1.0, sched_restarts=[4])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    make_scheduler(optimizer, config, STEPS).step_update(5 * STEPS)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rates(min_lr=1e-5, sched_restarts=[4])[5 * STEPS])


@pytest.mark.parametrize("restarts", [[3, 2], [2, 2], [0, 3]])
def test_restarts_that_do_not_ascend_are_refused(restarts):
    with pytest.raises(ValueError, match="ascending"):
        TrialConfig(teacher="t", student="s", epochs=9, sched_restarts=restarts)
