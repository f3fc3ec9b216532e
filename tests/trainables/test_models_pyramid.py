"""What CycleMLP and Hire-MLP have of their common skeleton, at tiny widths."""

import pytest
import timm
import torch

from trainables.build import build_model
from trainables.models.cyclemlp import CycleMLP
from trainables.models.hire_mlp import HireMLP
from trainables.student import Student

TINY = {"depths": (2, 1, 3, 1), "dims": (8, 16, 24, 32)}
NAMES = {"cyclemlp_b1": CycleMLP, "hire_mlp_tiny": HireMLP}


def tiny(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 5, **TINY, **kwargs})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [16, 50, 64, (40, 72)])
def test_any_size_trains_every_parameter(name, size):
    model = tiny(name, drop_rate=0.1, drop_path_rate=0.1, proj_drop_rate=0.1)
    height, width = (size, size) if isinstance(size, int) else size
    model(torch.randn(8, 3, height, width)).square().sum().backward()
    for parameter, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), parameter
        assert weight.grad.any(), parameter


@pytest.mark.parametrize("name", NAMES)
def test_a_student_taps_four_stages_and_keeps_the_models_logits(name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=5, img_size=64, kwargs=dict(TINY), drop=0.1, drop_path=0.1)
    assert type(model) is NAMES[name]  # the size fits without resizing inside
    student = Student(model, 5, 64, [1, 2, 3, 4])
    x = torch.randn(2, 3, 64, 64)
    student.eval()
    assert torch.equal(student(x).logits, model(x))
    student.train()
    logits, heads, *_ = student(x)
    assert list(heads) == [1, 2, 3, 4]
    (logits.square().sum() + sum(head.square().sum() for head in heads.values())).backward()
    assert all(weight.grad.isfinite().all() for weight in student.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_final_feature_through_the_head_is_the_forward_pass(name):
    model = tiny(name).eval()
    x = torch.randn(2, 3, 64, 64)
    final, features = model.forward_intermediates(x)
    assert torch.equal(model.forward_head(final), model(x)) and torch.equal(final, model.forward_features(x))
    assert [feature.shape[2] for feature in features] == [16, 8, 4, 2]
    early = model.forward_intermediates(x, indices=[0, 1], stop_early=True, intermediates_only=True)
    assert all(torch.equal(*pair) for pair in zip(early, features, strict=False)) and len(early) == 2
    last = model.forward_intermediates(x, 1, norm=True, output_fmt="NHWC", intermediates_only=True)[0]
    assert torch.equal(last, final.permute(0, 2, 3, 1))
