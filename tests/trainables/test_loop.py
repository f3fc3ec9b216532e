import json

import pytest
import timm
import torch
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file

from tests.conftest import TINY
from trainables.assets import Assets
from trainables.checkpoint import NAME
from trainables.config import TrialConfig
from trainables.context import RunContext, TrialFailure
from trainables.loop import STUDENT, run_trial
from trainables.teacher import WEIGHTS
from trainables.teacher_job import prepare_teacher

TIMES = ("time/epoch_s", "time/images_per_s", "time/start_s")


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """The data and a teacher fitted in a moment, shared by the module's tests."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("teacher")
    made = Assets()
    context, kept = RunContext(folder / "work", lambda _: True), folder / "kept"
    prepare_teacher(TrialConfig(**TINY), {"epochs": 2, "batch_size": 64, "hflip": 0.0}, made, context, kept)
    made.teacher_weights = kept / WEIGHTS
    return made


def train(config, assets, folder, stop_after=None, known_epoch=0):
    """Runs a trial alone; returns its reports without the clock."""
    reports = []

    def report(metrics):
        reports.append({key: value for key, value in metrics.items() if key not in TIMES})
        return metrics["epoch"] != stop_after

    run_trial(config, assets, RunContext(folder, report), known_epoch)
    return reports


def test_a_trial_reports_every_metric_of_the_schema(tiny, assets, tmp_path):
    reports = []
    run_trial(tiny(epochs=2), assets, RunContext(tmp_path, lambda metrics: reports.append(metrics) or True))
    assert [metrics["epoch"] for metrics in reports] == [1, 2]
    assert set(reports[0]) == {
        "epoch", "train/loss", "train/loss_gt", "train/loss_kd", "train/loss_ofa", "val/top1", "val/top5", "val/loss",
        "val/agreement", "best/val_top1", "time/epoch_s", "time/images_per_s", "time/start_s",
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"student": "test_resnet", "student_kwargs": {}, "opt": "sgd", "lr": 0.05},
        {"mixup": 0.8, "cutmix": 1.0, "reprob": 0.5, "drop_path": 0.2, "aa": "rand-m5-mstd0.5", "model_ema": True},
    ],
    ids=["mlp", "batch-norm", "random-everything"],
)
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(tiny, assets, tmp_path, changes):
    config = tiny(**changes)
    whole = train(config, assets, tmp_path / "whole")
    first = train(config, assets, tmp_path / "cut", stop_after=2)
    torch.rand(3)  # whatever a process does between two trials
    second = train(config, assets, tmp_path / "cut", known_epoch=2)
    assert first + second == whole
    weights, again = (load_file(tmp_path / name / STUDENT) for name in ("whole", "cut"))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_result_does_not_depend_on_what_ran_before(tiny, assets, tmp_path):
    alone = train(tiny(epochs=2), assets, tmp_path / "alone")
    train(tiny(epochs=1, student="test_resnet", student_kwargs={}, drop_path=0.3), assets, tmp_path / "other")
    assert train(tiny(epochs=2), assets, tmp_path / "after") == alone


def test_a_restarted_trial_repeats_what_did_not_arrive(tiny, assets, tmp_path):
    train(tiny(), assets, tmp_path, stop_after=3)
    again = train(tiny(), assets, tmp_path, known_epoch=1)
    assert [metrics["epoch"] for metrics in again] == [2, 3, 4]


def test_a_stop_trains_no_further_epoch(tiny, assets, tmp_path):
    assert len(train(tiny(), assets, tmp_path, stop_after=1)) == 1
    assert torch.load(tmp_path / NAME, weights_only=True)["epoch"] == 1
    assert not (tmp_path / STUDENT).exists()


def test_the_student_alone_loads_in_plain_timm_with_the_same_logits(tiny, assets, tmp_path):
    kept = {}
    config = tiny(epochs=1)
    context = RunContext(tmp_path, lambda metrics: True)
    from trainables import loop

    original = loop._Run.delivered

    def keep(run):
        kept["model"] = original(run)
        return kept["model"]

    loop._Run.delivered = keep
    try:
        run_trial(config, assets, context)
    finally:
        loop._Run.delivered = original
    plain = timm.create_model(config.student, num_classes=10, img_size=16, **config.student_kwargs)
    plain.load_state_dict(load_file(tmp_path / STUDENT))
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(plain.eval()(images), kept["model"].eval()(images))


def test_a_loss_that_is_no_number_fails_the_trial(tiny, assets, tmp_path):
    with pytest.raises(TrialFailure, match=r"loss is (nan|inf) in epoch 1"):
        train(tiny(lr=1e30, opt="sgd", clip_grad=None), assets, tmp_path)


def test_the_projectors_learning_rate_is_their_own(tiny, assets, tmp_path):
    from trainables.loop import build_student
    from trainables.optim import make_optimizer, make_scheduler

    config = tiny(projector_lr_scale=0.1, weight_decay=0.1, projector_weight_decay_scale=0.5)
    student = build_student(config, 10)
    optimizer = make_optimizer(student, config)
    scheduler = make_scheduler(optimizer, config, steps_per_epoch=5)
    of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for step in (0, 7, 5 * config.epochs - 1):
        scheduler.step_update(step)
        rates = {of[id(parameter)]["lr"] for parameter in student.model.parameters()}
        projectors = {of[id(parameter)]["lr"] for parameter in student.projectors.parameters()}
        assert len(rates) == 1 and max(projectors) == pytest.approx(0.1 * rates.pop())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1, 0.05}


@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_a_rate_below_the_floor_never_rises(tiny, warmup_epochs):
    from trainables.loop import build_student
    from trainables.optim import make_optimizer, make_scheduler

    config = tiny(lr=1e-6, min_lr=1e-5, warmup_lr=1e-4, warmup_epochs=warmup_epochs)
    optimizer = make_optimizer(build_student(config, 10), config)
    scheduler = make_scheduler(optimizer, config, steps_per_epoch=5)
    for step in range(5 * config.epochs):
        assert max(group["lr"] for group in optimizer.param_groups) == pytest.approx(1e-6)
        scheduler.step_update(step)


def _worker(rank, world_size, folder, fields, teacher_weights):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    reports = []
    context = RunContext(
        folder, lambda metrics: reports.append(metrics) or True, rank=rank, world_size=world_size, device="cpu"
    )
    run_trial(TrialConfig(**fields), Assets(teacher_weights=teacher_weights), context)
    if rank == 0:
        (folder / "reports.json").write_text(json.dumps(reports))
    torch.distributed.destroy_process_group()


def test_two_workers_give_the_losses_of_one(tiny, assets, tmp_path):
    config = tiny(epochs=2, mixup=0.8, cutmix=1.0)
    one = train(config, assets, tmp_path / "one")
    (tmp_path / "two").mkdir()
    arguments = (2, tmp_path / "two", config.model_dump(), assets.teacher_weights)
    multiprocessing.spawn(_worker, arguments, nprocs=2)
    two = json.loads((tmp_path / "two" / "reports.json").read_text())
    for alone, shared in zip(one, two, strict=True):
        for name in ("train/loss", "train/loss_gt", "train/loss_kd", "train/loss_ofa", "val/loss"):
            assert shared[name] == pytest.approx(alone[name], rel=2e-4), name
