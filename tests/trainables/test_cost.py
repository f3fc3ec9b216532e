import time

import pytest
import torch
from torch import nn

from trainables.build import build_model
from trainables.config import TrialConfig
from trainables.cost import MOST_PASSES, MOST_S, costs, latency_ms
from trainables.distillation import make_taught, needs_of
from trainables.student import Student
from trainables.teacher import Teacher

MEAN = STD = (0.5, 0.5, 0.5)


def taught(name="test_resnet", size=64, **fields):
    config = TrialConfig(**({"teacher": "test_vit", "student": name, "epochs": 1, "img_size": size} | fields))
    torch.manual_seed(0)
    model = build_model(name, num_classes=5, img_size=size, kwargs=config.student_kwargs)
    student = Student(model, 5, size, config.stages, config.taps, config.projector, needs_of(config))
    bare = build_model("test_vit", num_classes=5, img_size=size, field="teacher")
    return make_taught(
        student, config, lambda: Teacher(bare, MEAN, STD, needs_of(config)), torch.zeros(9, dtype=torch.int64)
    )


def test_a_branch_of_known_size():
    """A pooled projector is a norm and one linear layer on the pooled feature."""
    made = taught(projector="pooled", stages=[2, 4])
    found, channels = costs(made, 64), [shape[0] for shape in made.student.feature_shapes.values()]
    assert found["cost/branch_params"] == sum(2 * c + 5 * c + 5 for c in channels)
    assert found["cost/branch_flops"] == sum(2 * 5 * c for c in channels)
    assert found["cost/student_params"] == sum(weight.numel() for weight in made.student.model.parameters())


def test_a_students_flops_grow_with_its_image():
    small, large = (costs(taught(size=size), size)["cost/student_flops"] for size in (64, 128))
    assert large == pytest.approx(4 * small, rel=0.01)


def test_the_distillers_own_modules_count():
    alone = costs(taught(distiller="kd"), 64)
    assert alone["cost/branch_params"] == alone["cost/branch_flops"] == 0
    made = taught(distiller="fitnet", stages=[3])
    found = costs(made, 64)
    (weight,) = (weight for weight in made.extras.parameters())
    _, height, width = made.student.feature_shapes[3]
    assert found["cost/branch_params"] == weight.numel()
    assert found["cost/branch_flops"] == 2 * weight.numel() * height * width
    both = costs(taught(distiller="ofa+fitnet", stages=[3]), 64)
    ofa = costs(taught(stages=[3]), 64)
    for key in ("cost/branch_params", "cost/branch_flops"):
        assert both[key] == found[key] + ofa[key]


def test_pytorchs_own_attention_counts():
    name = "torchvision.models.vision_transformer:VisionTransformer"
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    made = taught(name, size=32, student_kwargs=sizes, distiller="kd")
    tokens, width = 17, 16
    layer = 2 * tokens * width * 4 * width + 2 * 2 * tokens**2 * width + 2 * 2 * tokens * width * 32
    rest = 2 * 16 * 3 * 64 * width + 2 * width * 5
    assert costs(made, 32)["cost/student_flops"] == pytest.approx(2 * layer + rest, rel=0.01)
    assert isinstance(made.student.model, nn.Module) and torch.backends.mha.get_fastpath_enabled()


def test_latency_leaves_the_model_as_it_was_and_is_of_one_image():
    model = build_model("test_resnet", num_classes=5, img_size=64)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    passes = []
    hook = model.register_forward_pre_hook(lambda module, inputs: passes.append((inputs[0].shape, module.training)))
    assert 0 < latency_ms(model.train(), 64) < 10_000
    hook.remove()
    assert set(passes) == {((1, 3, 64, 64), False)} and 4 <= len(passes) <= MOST_PASSES
    assert model.training, "and its batch-norms have seen nothing:"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_latency_is_the_median_pass_and_few_are_made_of_a_slow_model(monkeypatch):
    """On a clock that only the model moves: the first pass is slow, as passes that warm up are, and one more is."""

    class Model(nn.Linear):
        made, now = 0, 0.0

        def forward(self, images):
            Model.now += (40, 2, 30, 2)[Model.made] * MOST_S
            Model.made += 1

    monkeypatch.setattr(time, "perf_counter", lambda: Model.now)
    assert latency_ms(Model(1, 1), 8) == pytest.approx(2 * MOST_S * 1000)
    assert Model.made == 4


def test_a_trial_tells_its_students_latency():
    found = costs(taught(), 64)
    assert 0 < found["cost/latency_ms"] < 10_000
