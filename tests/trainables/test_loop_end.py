"""What a trial does at its end: the test split, and a student for delivery, trained on the holdout too."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
import torch.multiprocessing as multiprocessing
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import TINY
from tests.trainables.pictures import normalised, raw
from trainables.assets import Assets
from trainables.checkpoint import load_checkpoint
from trainables.config import TrialConfig
from trainables.context import RunContext
from trainables.errors import InputError
from trainables.files import CHECKPOINT
from trainables.loop import STUDENT, TEST, Run, run_trial

ALONE = {"distiller": "none", "stages": [], "eps": 1.0, "epochs": 2}
LAGGING = {  # batch norm, and an average that stays near the random start
    **ALONE, "student": "test_resnet", "student_kwargs": {}, "opt": "sgd", "lr": 0.05, "labels_per_class": 32,
    "model_ema": True, "model_ema_decay": 0.99999,
}  # fmt: skip


def train(config, assets, folder, keep_checkpoint=False, **options):
    """Trains a trial alone to its end; returns its reports."""
    reports = []

    def report(metrics):
        reports.append(metrics)
        return not (keep_checkpoint and metrics["epoch"] == config.epochs)

    run_trial(config, assets, RunContext(folder, report), **options)
    return reports


class Watched:
    """A source of images that knows which were looked at."""

    def __init__(self, source):
        self.source, self.seen = source, set()

    def image(self, index):
        self.seen.add(int(index))
        return self.source.image(index)


@pytest.fixture
def watched(monkeypatch):
    """Assets, and the source of their test split."""
    assets = Assets()
    splits = assets.splits(TrialConfig(**TINY))
    source = Watched(splits.test.source)
    splits = dataclasses.replace(splits, test=dataclasses.replace(splits.test, source=source))
    monkeypatch.setattr(assets, "splits", lambda config: splits)
    return assets, source


def test_only_a_trial_that_is_told_to_looks_at_the_test_split(tiny, watched, tmp_path):
    assets, source = watched
    test = assets.splits(None).test
    train(tiny(**ALONE, model_ema=True), assets, tmp_path / "plain")
    assert not source.seen and not (tmp_path / "plain" / TEST).exists()
    first, last = train(tiny(**ALONE), assets, tmp_path / "tested", test=True)
    assert source.seen == set(test.indices.tolist())
    kept = np.load(tmp_path / "tested" / TEST)
    assert sorted(kept) == ["predicted", "target"] and {kept[name].dtype for name in kept} == {np.dtype("int64")}
    assert kept["target"].tolist() == test.targets.tolist()
    assert last["test/top1"] == pytest.approx(100 * np.mean(kept["target"] == kept["predicted"]))
    assert not any(name.startswith("test/") for name in first)
    own = {name.removeprefix("test/") for name in last if name.startswith("test/")}
    assert own == {name.removeprefix("val/") for name in last if name.startswith("val/")}


def test_the_test_split_does_not_change_the_training(tiny, tmp_path):
    assets = Assets()
    weights = []
    for test in (False, True):
        train(tiny(**ALONE), assets, tmp_path / str(test), test=test)
        weights.append(load_file(tmp_path / str(test) / STUDENT))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_trial_of_one_epoch_is_tested_in_a_new_folder(tiny, tmp_path):
    (only,) = train(tiny(**ALONE | {"epochs": 1}), Assets(), tmp_path / "new" / "folder", test=True)
    assert "test/top1" in only and (tmp_path / "new" / "folder" / TEST).exists()


def test_a_report_that_did_not_arrive_has_the_test_again(tiny, tmp_path):
    *_, last = train(tiny(**ALONE), Assets(), tmp_path, keep_checkpoint=True, test=True)
    assert train(tiny(**ALONE), Assets(), tmp_path, known_epoch=1, test=True) == [last] and "test/loss" in last


def test_what_cannot_be_judged_is_refused_before_anything_trains(tiny, tmp_path, monkeypatch):
    for name in ("ant", "bee"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(2):
            pixels = np.random.default_rng([len(name), number]).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{number}.png")
    small = tiny(**ALONE | {"data": str(tmp_path / "pets"), "holdout": 0.5, "batch_size": 2})
    reports, trained, begin_epoch = [], [], Run.begin_epoch
    monkeypatch.setattr(Run, "begin_epoch", lambda run: trained.append(run.epoch) or begin_epoch(run))
    context = RunContext(tmp_path / "trial", lambda metrics: reports.append(metrics) or True)
    with pytest.raises(InputError, match=r"too small to spare a test split; add images, or .*--set finalists=0"):
        run_trial(small, Assets(), context, test=True)
    with pytest.raises(InputError, match="metrics=nowhere:f: nowhere cannot be imported"):
        run_trial(tiny(**ALONE | {"metrics": ["nowhere:f"]}), Assets(), context)
    assert not trained
    run_trial(small, Assets(), context)
    assert trained == [0, 1] and len(reports) == 2, "without the test split it trains"


def test_the_users_own_metrics_are_reported_on_both_splits(tiny, tmp_path):
    config = tiny(**ALONE, metrics=[f"{__name__}:ones_said"])
    *_, last = train(config, Assets(), tmp_path, test=True)
    assert {name for name in last if name.endswith("ones_said")} == {"val/ones_said", "test/ones_said"}
    assert last["test/ones_said"] == np.mean(np.load(tmp_path / TEST)["predicted"] == 1)


def ones_said(logits, target):
    return (logits.argmax(1) == 1).double().mean()


def test_a_delivery_trains_on_the_holdout_too_and_is_not_judged_by_it(tiny, tmp_path):
    plain, config = tiny(**ALONE), tiny(**ALONE, train_with_holdout=True)
    ours, theirs = Assets().splits(plain), Assets().splits(config)
    assert theirs.fingerprint == ours.fingerprint
    assert theirs.train.indices.tolist() == ours.train.indices.tolist() + ours.holdout.indices.tolist()
    assert theirs.train.targets.tolist() == ours.train.targets.tolist() + ours.holdout.targets.tolist()
    assert theirs.teacher_train.indices.tolist() == ours.teacher_train.indices.tolist()
    last = ours.holdout.image(len(ours.holdout) - 1)
    assert theirs.train.image(len(theirs.train) - 1).tobytes() == last.tobytes()
    reports = train(config, Assets(), tmp_path, test=True)
    assert not any(name.startswith(("val/", "best/")) for metrics in reports for name in metrics)
    assert [metrics["epoch"] for metrics in reports] == [1, 2] and "test/top1" in reports[-1]


@pytest.mark.parametrize("train_with_holdout", [True, False])
def test_the_tested_student_is_the_delivered_one(tiny, tmp_path, train_with_holdout):
    """The average, although it is the worse one, where no holdout can tell; else the better one."""
    config, assets = tiny(**LAGGING, train_with_holdout=train_with_holdout), Assets()
    *_, last = train(config, assets, tmp_path, keep_checkpoint=True, test=True)
    state, delivered = load_checkpoint(tmp_path), load_file(tmp_path / STUDENT)
    student = {name.removeprefix("student.model."): value for name, value in state["taught"].items()}
    expected, other = (state["ema"], student) if train_with_holdout else (student, state["ema"])
    assert all(torch.equal(value, expected[name]) for name, value in delivered.items())
    images, target = raw(assets.splits(config).test)

    def top1(weights):
        model = timm.create_model(config.student, num_classes=10)
        model.load_state_dict({name: weights[name] for name in delivered})
        with torch.no_grad():
            return 100 * (model.eval()(normalised(images, model)).argmax(1) == target).double().mean().item()

    assert last["test/top1"] == pytest.approx(top1(delivered))
    assert abs(top1(delivered) - top1(other)) > 10, "the test would see little"


def test_a_delivery_goes_on_bit_for_bit(tiny, tmp_path):
    config = tiny(**LAGGING | {"epochs": 3}, train_with_holdout=True)
    train(config, Assets(), tmp_path / "whole")
    run_trial(config, Assets(), RunContext(tmp_path / "cut", lambda metrics: metrics["epoch"] < 2))
    assert (tmp_path / "cut" / CHECKPOINT).exists()
    train(config, Assets(), tmp_path / "cut", known_epoch=2)
    weights, again = (load_file(tmp_path / name / STUDENT) for name in ("whole", "cut"))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def _batch_norm_on(rank, folder, fields):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    context = RunContext(folder, lambda metrics: True, rank=rank, world_size=2)
    run = Run(TrialConfig(**fields), Assets(), context, test=False)
    run.begin_epoch()
    for batch in run.feed.epoch(0):
        run.train(batch)
    run.end_epoch()
    torch.save([dict(model.named_buffers()) for model in (run.student.model, run.ema.module)], folder / f"{rank}.pt")
    run.feed.close()
    torch.distributed.destroy_process_group()


def test_a_delivered_batch_norm_is_the_average_of_the_workers(tiny, tmp_path):
    config = tiny(**LAGGING | {"epochs": 1}, train_with_holdout=True)
    multiprocessing.spawn(_batch_norm_on, (tmp_path, config.model_dump()), nprocs=2)
    delivered, ranks = load_file(tmp_path / STUDENT), [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for own, others in zip(*ranks, strict=True):
        assert own and all(torch.equal(own[name], others[name]) for name in own)
    averaged = ranks[0][1]
    assert all(torch.equal(delivered[name], averaged[name]) for name in averaged)
