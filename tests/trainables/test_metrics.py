"""The figures of given predictions, beside scikit-learn's; whole evaluations are in test_evaluate.py."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score
from torchmetrics.functional.classification import multiclass_calibration_error

from trainables.errors import InputError
from trainables.metrics import Predictions, figures, own_metrics, recall_by_class


def predictions_of(logits, target):
    """As an evaluation has them."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return Predictions(
        target=target,
        predicted=ranked[:, 0],
        confidence=logits.softmax(1).amax(1),
        in_top5=(ranked == target[:, None]).any(1),
        loss=torch.nn.functional.cross_entropy(logits, target, reduction="none").double(),
        agreed=None,
        logits=logits,
        classes=logits.shape[1],
    )


def drawn(images, classes, present, seed=0):
    """Random logits that are often right, of images of the first `present` classes only."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(present, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), target] += 1.5
    return logits, target


@pytest.mark.parametrize(
    ("images", "classes", "present"),
    [(300, 10, 10), (300, 10, 7), (40, 1000, 1000), (500, 2, 2), (1, 5, 5)],
    ids=["every class", "classes without images that are said", "more classes than images", "two classes", "one image"],
)
def test_each_is_what_scikit_learn_finds(images, classes, present):
    logits, target = drawn(images, classes, present)
    found, said = figures(predictions_of(logits, target), {}), logits.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn notices classes that are said and have no images
        assert found["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(target, said))
        assert found["macro_f1"] == pytest.approx(100 * f1_score(target, said, average="macro"))
    assert found["ece"] == pytest.approx(100 * multiclass_calibration_error(logits, target, classes, 15, "l1").item())
    if present < classes:
        assert said.max() >= present, "the test would see nothing"


def test_a_class_without_images_has_no_recall():
    logits, target = drawn(300, 10, 7)
    recalls = recall_by_class(predictions_of(logits, target))
    expected = recall_score(target, logits.argmax(1), labels=range(7), average=None)
    assert recalls == [*(pytest.approx(100 * recall) for recall in expected), None, None, None]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes modules of the user's."""
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


@pytest.mark.parametrize(
    "value", [3, 0.25, np.float32(0.25), np.array(0.25), torch.tensor(0.25), torch.tensor([3]), math.nan]
)
def test_a_number_of_any_kind_is_taken(value):
    found = figures(predictions_of(*drawn(20, 3, 3)), {"own": lambda logits, target: value})["own"]
    assert type(found) is float and found == pytest.approx(float(value), nan_ok=True)


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, torch.tensor(math.inf), "1.5", True, None, 1j, torch.ones(2), torch.tensor(True)]
)
def test_what_is_no_number_is_refused_by_the_functions_name(value):
    with pytest.raises(InputError, match=re.escape("metrics: own(logits, target)")) as caught:
        figures(predictions_of(*drawn(20, 3, 3)), {"own": lambda logits, target: value})
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]


def test_a_function_that_ends_the_process_or_raises_is_refused():
    def leaves(logits, target):
        raise SystemExit(3)

    for metric in (leaves, lambda logits: 1.0):
        with pytest.raises(InputError, match=r"metrics: own\(logits, target\) fails"):
            figures(predictions_of(*drawn(20, 3, 3)), {"own": metric})


def test_a_diverged_model_is_not_the_functions_fault():
    logits, target = drawn(20, 3, 3)
    found = figures(predictions_of(logits * math.nan, target), {"own": lambda logits, target: math.inf})
    assert math.isnan(found["loss"]) and math.isnan(found["own"])


@pytest.mark.parametrize(
    ("text", "path", "problem"),
    [
        ("import os\nos.nothing\n", "m_raises:f", "m_raises cannot be imported (AttributeError"),
        ("raise SystemExit(3)\n", "m_leaves:f", "m_leaves cannot be imported (SystemExit"),
        ("def recall(a, b):\n    return 1.0\n", "m_near:recal", "no callable 'recal'; did you mean recall?"),
        ("f = 3\n", "m_value:f", "no callable 'f'"),
        ("", "m_empty.inner:f", "m_empty.inner cannot be imported"),
    ],
)
def test_what_cannot_be_imported_is_refused_by_its_path(mine, text, path, problem):
    mine(path.partition(":")[0].partition(".")[0], text)
    with pytest.raises(InputError, match=f"metrics={re.escape(path)}: .*{re.escape(problem)}"):
        own_metrics([path])


def test_functions_are_named_without_their_modules(mine):
    mine("m_good", "def first(a, b):\n    return 1.0\ndef second(a, b):\n    return 2.0\n")
    found = own_metrics(["m_good:second", "m_good:first"])
    assert [(name, metric(None, None)) for name, metric in found.items()] == [("second", 2.0), ("first", 1.0)]
