import json
import math

import numpy as np
import pytest
import timm
import torch
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file

from tests.conftest import TINY
from trainables.assets import Assets
from trainables.config import TrialConfig
from trainables.context import RunContext, TrialFailure
from trainables.distillers import distillers_of
from trainables.files import CHECKPOINT
from trainables.loop import STUDENT, TEST, build_student, run_trial
from trainables.teacher import WEIGHTS
from trainables.teacher_job import prepare_teacher

TIMES = ("time/epoch_s", "time/images_per_s", "time/start_s", "time/trained_s", "cost/latency_ms")


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
    costs = {"cost/student_params", "cost/student_flops", "cost/branch_params", "cost/branch_flops", "cost/latency_ms"}
    assert set(reports[0]) == set(reports[1]) | costs  # what does not change is told once
    assert set(reports[1]) == {
        "epoch", "train/loss", "train/loss_gt", "train/loss_kd", "train/loss_ofa", "val/top1", "val/top5", "val/loss",
        "val/agreement", "best/val_top1", "time/epoch_s", "time/images_per_s", "time/start_s",
        "time/trained_s", "val/balanced_accuracy", "val/macro_f1", "val/ece",
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"student": "test_resnet", "student_kwargs": {}, "opt": "sgd", "lr": 0.05},
        {"mixup": 0.8, "cutmix": 1.0, "reprob": 0.5, "drop_path": 0.2, "aa": "rand-m5-mstd0.5", "model_ema": True},
        {"distiller": "ofa+crd+rsd", "curriculum_temperature": True, "crd_negatives": 20},
        {"sched_restarts": [2], "warmup_epochs": 1},
        {"sched_restarts": [1, 3], "sched": "step", "decay_epochs": 1},
    ],
    ids=["mlp", "batch-norm", "random-everything", "distillers-with-a-state", "at-a-restart", "between-restarts"],
)
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(tiny, assets, tmp_path, changes):
    config = tiny(**changes)
    whole = train(config, assets, tmp_path / "whole")
    first = train(config, assets, tmp_path / "cut", stop_after=2)
    torch.rand(3)  # whatever a process does between two trials
    second = train(config, assets, tmp_path / "cut", known_epoch=2)
    assert first + second == whole
    if config.sched_restarts:
        plain = train(tiny(**(changes | {"sched_restarts": []})), assets, tmp_path / "plain")
        assert plain[-1]["train/loss"] != whole[-1]["train/loss"], "nothing restarted"
    weights, again = (load_file(tmp_path / name / STUDENT) for name in ("whole", "cut"))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"student": "test_resnet", "student_kwargs": {}, "opt": "sgd", "lr": 0.05, "model_ema": True},
        {"mixup": 0.8, "cutmix": 1.0, "reprob": 0.5, "drop_path": 0.2, "aa": "rand-m5-mstd0.5", "loader_workers": 1},
        {"distiller": "ofa+crd+rsd", "curriculum_temperature": True, "crd_negatives": 20},
    ],
    ids=["batch-norm-and-average", "random-everything", "distillers-with-a-state"],
)
@pytest.mark.parametrize("at", [1, 3])
def test_a_trial_paused_amid_an_epoch_goes_on_to_the_bit(tiny, assets, tmp_path, changes, at):
    """As on a machine that is about to be taken away, which is noticed at the third asking or the first."""
    config = tiny(**changes)
    whole = train(config, assets, tmp_path / "whole")
    asked, reports = [], []
    context = RunContext(
        tmp_path / "cut",
        lambda metrics: reports.append({key: metrics[key] for key in metrics if key not in TIMES}) or True,
        leaving=lambda: bool(asked.append(True)) or len(asked) >= at,
    )
    assert not run_trial(config, assets, context) and context.paused
    torch.rand(3)
    assert reports + train(config, assets, tmp_path / "cut", known_epoch=len(reports)) == whole
    weights, again = (load_file(tmp_path / name / STUDENT) for name in ("whole", "cut"))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_deterministic_trial_repeats_to_the_bit_on_a_gpu(tiny, assets, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    gpu = Assets("cuda", assets.teacher_weights)
    config = tiny(student="test_resnet", student_kwargs={}, opt="sgd", lr=0.05, deterministic=True)
    told = []
    for name in "ab":
        reports = []
        context = RunContext(tmp_path / name, lambda one, kept=reports: kept.append(one) or True, device="cuda")
        run_trial(config, gpu, context)
        told.append([{key: value for key, value in one.items() if key not in TIMES} for one in reports])
    assert told[0] == told[1]


def test_determinism_is_a_trials_own_and_a_gpus(tiny, assets, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("trainables.checkpoint.torch.use_deterministic_algorithms", asked.append)
    for name, deterministic in (("a", True), ("b", False)):
        train(tiny(epochs=1, deterministic=deterministic), assets, tmp_path / name)
    assert asked == [False, False], "a CPU repeats itself anyway"


def test_a_result_does_not_depend_on_what_ran_before(tiny, assets, tmp_path):
    alone = train(tiny(epochs=2), assets, tmp_path / "alone")
    train(tiny(epochs=1, student="test_resnet", student_kwargs={}, drop_path=0.3), assets, tmp_path / "other")
    assert train(tiny(epochs=2), assets, tmp_path / "after") == alone


def test_a_restarted_trial_repeats_what_did_not_arrive(tiny, assets, tmp_path):
    train(tiny(), assets, tmp_path, stop_after=3)
    again = train(tiny(), assets, tmp_path, known_epoch=1)
    assert [metrics["epoch"] for metrics in again] == [2, 3, 4]


def test_the_time_trained_goes_on_where_an_attempt_ended(tiny, assets, tmp_path):
    reports = []
    for stop_after in (2, None):
        context = RunContext(tmp_path, lambda metrics: reports.append(metrics) or metrics["epoch"] != stop_after)  # noqa: B023
        run_trial(tiny(), assets, context, known_epoch=len(reports))
    epochs = [metrics["time/epoch_s"] for metrics in reports]
    assert len(epochs) == 4 and min(epochs) > 0
    assert [metrics["time/trained_s"] for metrics in reports] == pytest.approx(np.cumsum(epochs))


def test_a_stop_trains_no_further_epoch(tiny, assets, tmp_path):
    assert len(train(tiny(), assets, tmp_path, stop_after=1)) == 1
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["epoch"] == 1
    assert not (tmp_path / STUDENT).exists()


def test_the_student_alone_loads_in_plain_timm_with_the_same_logits(tiny, assets, tmp_path):
    kept = {}
    config = tiny(epochs=1)
    context = RunContext(tmp_path, lambda metrics: True)
    from trainables import loop

    original = loop.Run.delivered

    def keep(run):
        kept["model"] = original(run)
        return kept["model"]

    loop.Run.delivered = keep
    try:
        run_trial(config, assets, context)
    finally:
        loop.Run.delivered = original
    plain = timm.create_model(config.student, num_classes=10, img_size=16, **config.student_kwargs)
    plain.load_state_dict(load_file(tmp_path / STUDENT))
    plain.to(memory_format=torch.channels_last)  # as it was trained: else convolutions round otherwise
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(plain.eval()(images), kept["model"].eval()(images))


def test_a_loss_that_is_no_number_fails_the_trial(tiny, assets, tmp_path):
    with pytest.raises(TrialFailure, match=r"loss is (nan|inf) in epoch 1"):
        train(tiny(lr=1e30, opt="sgd", clip_grad=None), assets, tmp_path)


def taught_of(config):
    from trainables.distillation import make_taught

    return make_taught(build_student(config, 10), config, lambda: None, torch.zeros(10, dtype=torch.int64))


def test_the_projectors_learning_rate_is_their_own(tiny, assets, tmp_path):
    from trainables.optim import make_optimizer, make_scheduler

    config = tiny(projector_lr_scale=0.1, weight_decay=0.1, projector_weight_decay_scale=0.5)
    taught = taught_of(config)
    optimizer, student = make_optimizer(taught, config), taught.student
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
    from trainables.optim import make_optimizer, make_scheduler

    config = tiny(lr=1e-6, min_lr=1e-5, warmup_lr=1e-4, warmup_epochs=warmup_epochs)
    optimizer = make_optimizer(taught_of(config), config)
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
    run_trial(TrialConfig(**fields), Assets(teacher_weights=teacher_weights), context, test=True)
    if rank == 0:
        (folder / "reports.json").write_text(json.dumps(reports))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "distiller", ["kd", "dkd", "dist", "fitnet", "cc", "rkd", "rsd", "rsd_logits", "ofa+rsd_logits"]
)
def test_every_distiller_trains_a_student(tiny, assets, tmp_path, distiller):
    reports = train(tiny(epochs=1, distiller=distiller), assets, tmp_path)
    terms = {term for one in distillers_of(distiller) for term in one.weights}
    assert {name.removeprefix("train/loss_") for name in reports[0] if name.startswith("train/loss_")} == {
        "gt", "kd", "ofa", *terms
    }  # fmt: skip
    assert all(reports[0][f"train/loss_{term}"] > 0 for term in terms)
    assert set(load_file(tmp_path / STUDENT)) == set(build_student(tiny(), 10).model.state_dict())  # no branch is in it
    branches = reports[0]["cost/branch_params"]
    assert (branches > 0) == (distiller in ("fitnet", "cc", "rsd", "ofa+rsd_logits"))
    assert (reports[0]["cost/branch_flops"] > 0) == (branches > 0)


def test_a_learned_temperature_is_reported_and_moves(tiny, assets, tmp_path):
    reports = train(tiny(distiller="kd", curriculum_temperature=True, curriculum_epochs=2, lr=0.02), assets, tmp_path)
    temperatures = [metrics["train/temperature"] for metrics in reports]
    assert temperatures[0] == pytest.approx(1 + 20 / (1 + math.exp(-1)))  # nothing moves it in the first epoch
    assert len(set(temperatures)) == len(temperatures)


@pytest.mark.parametrize(
    ("distiller", "terms"), [("ofa", ["kd", "ofa"]), ("crd", ["crd"])], ids=["ofa", "crd, its memory bank shared out"]
)
def test_two_workers_give_the_losses_of_one(tiny, assets, tmp_path, distiller, terms):
    config = tiny(epochs=2, mixup=0.8, cutmix=1.0, distiller=distiller, crd_negatives=50)
    one = train(config, assets, tmp_path / "one")
    (tmp_path / "two").mkdir()
    arguments = (2, tmp_path / "two", config.model_dump(), assets.teacher_weights)
    multiprocessing.spawn(_worker, arguments, nprocs=2)
    two = json.loads((tmp_path / "two" / "reports.json").read_text())
    for alone, shared in zip(one, two, strict=True):
        for name in ("train/loss", "train/loss_gt", *(f"train/loss_{term}" for term in terms), "val/loss"):
            assert shared[name] == pytest.approx(alone[name], rel=2e-4), name
    kept = np.load(tmp_path / "two" / TEST)
    assert (kept["target"] == assets.splits(config).test.targets).all()
    assert two[-1]["test/top1"] == pytest.approx(100 * np.mean(kept["target"] == kept["predicted"]))
