import json
from datetime import timedelta

import numpy as np
import pytest
import timm
import torch
import torch.multiprocessing as multiprocessing
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score, f1_score

from tests.conftest import TINY
from tests.trainables.pictures import normalised, raw, with_fitted_head
from trainables.assets import Assets
from trainables.build import build_model
from trainables.checkpoint import save_weights
from trainables.config import TrialConfig
from trainables.context import RunContext
from trainables.errors import InputError
from trainables.evaluate import evaluate
from trainables.metrics import recall_by_class
from trainables.teacher import build_teacher

FIELDS = {**TINY, "holdout": 0.201, "student": "mixer_nano", "teacher": "mixer_nano"}
FIELDS |= {"student_kwargs": {}, "teacher_kwargs": {}, "labels_per_class": 4}
OWN = {"mean": (0.6, 0.5, 0.4), "std": (0.3, 0.4, 0.5)}  # the student's normalisation, not the teacher's
ALONE = RunContext(".", lambda metrics: True)


def make_student():
    config = TrialConfig(**FIELDS)
    torch.manual_seed(3)
    model = build_model(config.student, num_classes=10, img_size=16)
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "mean": (0.6, 0.5, 0.4),
        "std": (0.3, 0.4, 0.5),
    }  # not the teacher's
    return with_fitted_head(model, Assets().splits(config).train)


@pytest.fixture(scope="module")
def teacher_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    config = TrialConfig(**FIELDS)
    torch.manual_seed(2)
    save_weights(with_fitted_head(build_teacher(config, 10), Assets().splits(config).teacher_train), path)
    return path


def test_the_figures_are_those_of_an_independent_computation(teacher_weights):
    config, assets, student = TrialConfig(**FIELDS), Assets(teacher_weights=teacher_weights), make_student()
    metrics = evaluate(student, assets, config, ALONE)

    images, target = raw(assets.splits(config).holdout)
    teacher = timm.create_model(config.teacher, num_classes=10)
    teacher.load_state_dict(load_file(teacher_weights))
    with torch.no_grad():
        logits, taught = (model.eval()(normalised(images, model)).double().numpy() for model in (student, teacher))
    target = target.numpy()
    ranked = np.argsort(-logits, axis=1)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(target)), target]
    assert metrics == {
        "top1": pytest.approx(100 * np.mean(ranked[:, 0] == target)),
        "top5": pytest.approx(100 * np.mean([label in row[:5] for label, row in zip(target, ranked, strict=True)])),
        "loss": pytest.approx(losses.mean(), rel=1e-5),
        "balanced_accuracy": pytest.approx(100 * balanced_accuracy_score(target, ranked[:, 0])),
        "macro_f1": pytest.approx(100 * f1_score(target, ranked[:, 0], average="macro")),
        "ece": pytest.approx(100 * calibration_error(logits, target), rel=1e-4),
        "agreement": pytest.approx(100 * np.mean(ranked[:, 0] == taught.argmax(1))),
    }
    assert 0 < metrics["top1"] < metrics["top5"] < 100 and 0 < metrics["agreement"] < 100, "the test would see little"
    assert metrics["agreement"] != pytest.approx(metrics["top1"])


def calibration_error(logits, target):
    """Guo et al., 2017: the gaps between confidence and accuracy in 15 bins, weighted by the bins' shares."""
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = shares.max(1), shares.argmax(1) == target
    bins = np.clip((confidence * 15).astype(int), 0, 14)
    return sum(abs(confidence[bins == i].sum() - right[bins == i].sum()) for i in range(15)) / len(target)


def test_the_users_own_metrics_are_reported(teacher_weights, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def zeros_found(logits, target):\n    return (logits.argmax(1)[target == 0] == 0).float().mean()\n"
    )
    config, student = TrialConfig(**FIELDS, metrics=["mine:zeros_found"]), make_student()
    seen = []
    metrics = evaluate(student, Assets(), config, ALONE, look=seen.append)
    assert 0 < metrics["zeros_found"] < 1
    assert metrics["zeros_found"] == pytest.approx(recall_by_class(seen[0])[0] / 100)
    given = seen[0].logits
    assert given.dtype == torch.float32 and given.shape == (len(seen[0].target), 10) and given.device.type == "cpu"


@pytest.mark.parametrize("metrics", [["mine"], ["a:top1"], ["a:f", "b:f"]])
def test_a_metric_of_no_use_is_refused(metrics):
    with pytest.raises(ValueError, match=r"metrics|metric "):
        TrialConfig(**FIELDS, metrics=metrics)


def test_agreement_is_left_out_where_no_teacher_stands(teacher_weights):
    config, student = TrialConfig(**FIELDS), make_student()
    without = evaluate(student, Assets(), config, ALONE)
    assert set(without) == {"top1", "top5", "loss", "balanced_accuracy", "macro_f1", "ece"}
    assert evaluate(student, Assets(teacher_weights=teacher_weights), config, ALONE, agreement=False) == without


def test_a_teacher_agrees_with_itself(teacher_weights):
    config = TrialConfig(**FIELDS)
    model = build_teacher(config, 10, teacher_weights)
    assert evaluate(model, Assets(teacher_weights=teacher_weights), config, ALONE)["agreement"] == 100.0


def test_five_of_three_classes_are_all(tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / name).mkdir()
        for number in range(8):
            pixels = np.random.default_rng([len(name), number]).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    config = TrialConfig(**{**FIELDS, "data": str(tmp_path), "labels_per_class": None, "holdout": 0.5})
    model = build_model(config.student, num_classes=3, img_size=16)
    assert evaluate(model, Assets(), config, ALONE)["top5"] == 100.0


@pytest.mark.parametrize("training", [True, False])
def test_judging_leaves_the_model_as_it_was(training):
    config = TrialConfig(**{**FIELDS, "student": "test_resnet"})
    model = build_model("test_resnet", num_classes=10, img_size=16, drop=0.5).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = evaluate(model, Assets(), config, ALONE)
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "batch norm moved"
    assert evaluate(model, Assets(), config, ALONE) == first, "dropout was on"


def in_their_order(logits, target):
    """A metric that the images' order decides, too."""
    places = torch.arange(1, len(target) + 1)
    return ((logits.gather(1, target[:, None])[:, 0] * places).sum() / places.sum()).item()


def broken(logits, target):
    raise ValueError("no good")


def judged(student, assets, context, *, part, metrics):
    """The figures of a split, and on rank 0 the class that each of its images was given."""
    seen = []
    found = evaluate(student, assets, TrialConfig(**FIELDS, metrics=metrics), context, part=part, look=seen.append)
    return found, [[each.target.tolist(), each.predicted.tolist()] for each in seen]


def judge_on(rank, world_size, folder, teacher_weights):
    torch.set_num_threads(1)
    limit = timedelta(seconds=120)
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=world_size, timeout=limit)
    try:
        context = RunContext(folder, lambda metrics: True, rank=rank, world_size=world_size)
        assets, student = Assets(teacher_weights=teacher_weights), make_student()
        said = {
            part: judged(student, assets, context, part=part, metrics=[f"{__name__}:in_their_order"])
            for part in ("holdout", "test")
        }
        try:
            evaluate(student, assets, TrialConfig(**FIELDS, metrics=[f"{__name__}:broken"]), context)
        except InputError as error:
            said["refusal"] = str(error)
        (folder / f"{rank}.json").write_text(json.dumps(said))
    finally:
        torch.distributed.destroy_process_group()


def _worker(index, *arguments):
    judge_on(1, *arguments)


def test_two_ranks_that_share_a_split_find_what_one_finds_in_its_order(tmp_path, teacher_weights):
    config, assets = TrialConfig(**FIELDS), Assets(teacher_weights=teacher_weights)
    splits = assets.splits(config)
    assert len(splits.holdout) % 2 == 1, "shares of different size are the harder case"
    metrics = [f"{__name__}:in_their_order"]
    alone = {part: judged(make_student(), assets, ALONE, part=part, metrics=metrics) for part in ("holdout", "test")}
    assert alone["test"][1][0][0] == splits.test.targets.tolist()
    arguments = (2, tmp_path, teacher_weights)
    other = multiprocessing.spawn(_worker, arguments, nprocs=1, join=False, daemon=True)  # this process is rank 0
    judge_on(0, *arguments)
    while not other.join():
        pass
    for rank in (0, 1):
        shared = json.loads((tmp_path / f"{rank}.json").read_text())
        assert shared.pop("refusal").startswith("metrics: broken(logits, target) fails (ValueError: no good)")
        for part, (found, seen) in shared.items():
            expected, order = alone[part]
            assert set(found) == set(expected)
            for name in ("loss", "ece", "in_their_order"):  # batches of another size round otherwise
                assert found.pop(name) == pytest.approx(expected[name], rel=1e-5), name
            assert found == {name: expected[name] for name in found}
            assert seen == (order if rank == 0 else [])
