import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer

from trainables.build import build_model
from trainables.student import Student, available_stages

WIDTHS = [("swin_pico", 48), ("swin_nano", 64)]


def count(model):
    return sum(weight.numel() for weight in model.parameters())


def test_nano_has_the_published_parameters():
    with torch.device("meta"):
        assert count(timm.create_model("swin_nano")) == pytest.approx(9.6e6, rel=0.02)


@pytest.mark.parametrize("name, width", WIDTHS)
def test_features_at_224_are_the_papers(name, width):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=100)
        final, features = model.forward_intermediates(torch.zeros(1, 3, 224, 224))
        assert model.forward_head(final).shape == (1, 100)
    assert [list(f.shape[1:]) for f in features] == [[width * 2**i, 56 >> i, 56 >> i] for i in range(4)]
    assert [info["num_chs"] for info in model.feature_info] == [width * 2**i for i in range(4)]
    assert [stage.blocks[0].attn.num_heads for stage in model.layers] == [2, 4, 8, 16]
    assert {block.window_size for stage in model.layers for block in stage.blocks} == {(7, 7)}


@pytest.mark.parametrize("name, width", WIDTHS)
def test_weights_fit_timms_own_class(name, width):
    own = {"embed_dim": width, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)}
    model, plain = timm.create_model(name, num_classes=5, img_size=32), SwinTransformer(32, num_classes=5, **own)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert len(timm.create_model(name, features_only=True, img_size=32)(x)) == 4


@pytest.mark.parametrize("name, width", WIDTHS)
def test_a_student_of_all_stages_trains(name, width):
    torch.manual_seed(0)
    model = build_model(name, num_classes=5, img_size=64, drop=0.1, drop_path=0.1)
    assert available_stages(model) == [1, 2, 3, 4]
    student = Student(model, 5, 64, [1, 2, 3, 4])
    x = torch.randn(4, 3, 64, 64)
    logits, heads, *_ = student.train()(x)
    (logits.square().mean() + sum(head.square().mean() for head in heads.values())).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in student.parameters())
    assert any(weight.endswith("relative_position_bias_table") for weight in student.no_weight_decay())
    assert torch.equal(student.eval()(x)[0], model(x))
