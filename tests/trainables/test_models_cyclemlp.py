import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torchvision.ops import deform_conv2d

from trainables.models.cyclemlp import CycleFC, CycleMixer
from trainables.models.pyramid import reweighted

PUBLISHED = {"cyclemlp_b1": 15, "cyclemlp_b2": 27, "cyclemlp_b3": 38, "cyclemlp_b4": 52, "cyclemlp_b5": 76}  # millions
TINY = {"depths": (1, 2, 1, 1), "dims": (8, 16, 24, 32)}


def tiny(seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model("cyclemlp_b1", **{"num_classes": 5, **TINY, **kwargs})


@pytest.mark.parametrize("name, millions", PUBLISHED.items())
def test_parameters_are_as_many_as_published(name, millions):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_stages_at_224_are_as_published():
    with torch.device("meta"):
        model = timm.create_model("cyclemlp_b3")
        final, features = model.forward_intermediates(torch.empty(1, 3, 224, 224))
    sizes = [(64, 56, 56), (128, 28, 28), (320, 14, 14), (512, 7, 7)]
    assert [tuple(feature.shape[1:]) for feature in features] == sizes
    assert final.shape[1:] == (512, 7, 7) and model.forward_head(final).shape == (1, 1000)
    assert [(info["num_chs"], info["reduction"]) for info in model.feature_info] == list(
        zip((64, 128, 320, 512), (4, 8, 16, 32), strict=True)
    )
    for info, feature in zip(model.feature_info, features, strict=True):
        assert isinstance(model.get_submodule(info["module"]), torch.nn.Sequential)
        assert feature.shape[1] == info["num_chs"]


@pytest.mark.parametrize("kernel", [(1, 3), (3, 1), (1, 5), (7, 1), (1, 1)])
def test_cycle_fc_equals_plain_loops(kernel):
    torch.manual_seed(0)
    layer = CycleFC(7, 4, kernel).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 7, 5, 6, dtype=torch.float64)
    expected = layer.bias.detach()[None, :, None, None].repeat(2, 1, 5, 6)
    # as the paper counts: channels cycle through the kernel's positions, and channel 0 stays in place
    length = max(kernel)
    places = [0, *range(1, length // 2 + 1), *range(-(length // 2), 0)]
    for channel in range(7):
        step = places[channel % length]
        for row in range(5):
            for column in range(6):
                source = (row + step, column) if kernel[0] > 1 else (row, column + step)
                if 0 <= source[0] < 5 and 0 <= source[1] < 6:
                    read = x[:, channel, source[0], source[1]]
                    expected[:, :, row, column] += read[:, None] * layer.weight[:, channel, 0, 0].detach()
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kernel", [(1, 3), (3, 1), (1, 7), (1, 1)])
def test_cycle_fc_equals_the_deformable_convolution_of_its_offsets(kernel):
    torch.manual_seed(0)
    layer = CycleFC(7, 4, kernel)
    x = torch.randn(2, 7, 5, 6)
    offset = layer.offset.expand(2, -1, 5, 6)
    torch.testing.assert_close(layer(x), deform_conv2d(x, offset, layer.weight, layer.bias))


@pytest.mark.parametrize("kernel", [(3, 3), (1, 2), (4, 1)])
def test_cycle_fc_refuses_kernels_that_are_no_line_or_have_no_middle(kernel):
    with pytest.raises(ValueError, match="odd"):
        CycleFC(4, 4, kernel)


def test_a_mixer_reaches_along_rows_and_columns_only():
    torch.manual_seed(0)
    mixer = CycleMixer(6)
    torch.nn.init.zeros_(mixer.reweight.fc2.weight)  # the weights would carry information everywhere
    x = torch.randn(1, 7, 7, 6, requires_grad=True)
    mixer(x)[0, 3, 3].sum().backward()
    reached = {tuple(place) for place in x.grad[0].abs().sum(-1).nonzero().tolist()}
    assert reached == {(3, 3), (2, 3), (4, 3), (3, 2), (3, 4)}


def test_branch_weights_sum_to_one():
    h = torch.randn(2, 3, 4, 5)
    same = reweighted(h, h, h, torch.nn.Linear(5, 15), (1, 2))
    torch.testing.assert_close(same, h)


def test_features_only_gives_the_same_features():
    x = torch.randn(1, 3, 64, 64)
    whole = tiny(seed=1)
    taps = tiny(seed=1, features_only=True, out_indices=(0, 2))
    assert taps.feature_info.channels() == [8, 24] and taps.feature_info.reduction() == [4, 16]
    expected = whole.eval().forward_intermediates(x, [0, 2], intermediates_only=True)
    assert all(torch.equal(*pair) for pair in zip(taps.eval()(x), expected, strict=True))


def test_classifier_can_be_replaced_or_left_out():
    model = tiny().eval()
    x = torch.randn(2, 3, 32, 32)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(3)
    assert model.get_classifier() is model.head and model(x).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 32, 1, 1)
    with pytest.raises(ValueError, match="max"):
        tiny(global_pool="max")


def test_recomputing_blocks_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        model = tiny()
        model.set_grad_checkpointing(recompute)
        torch.manual_seed(1)
        model(torch.randn(2, 3, 32, 32)).square().sum().backward()
        gradients.append([weight.grad for weight in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_lower_precision_stays_near():
    model = tiny().eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x)
    mixed.float().sum().backward()
    assert model.network[0][0].attn.sfc_h.weight.grad.dtype == torch.float32
    pure = model.bfloat16()(x.bfloat16())
    assert pure.dtype == torch.bfloat16
    for logits in (mixed, pure):
        torch.testing.assert_close(logits.float(), expected, atol=0.03, rtol=0)


def test_learning_rates_can_decay_by_layer():
    model = tiny()
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    scales = {id(weight): group["lr_scale"] for group in groups for weight in group["params"]}
    order = [model.patch_embed.proj, model.network[0][0].mlp.fc1, model.network[2][0].mlp.fc1]
    order += [model.network[2][1].mlp.fc1, model.network[4][0].mlp.fc1, model.head]
    assert [scales[id(layer.weight)] for layer in order] == sorted({scales[id(layer.weight)] for layer in order})


def test_state_dict_is_laid_out_as_officially():
    names = set(tiny().state_dict())
    assert {"patch_embed.proj.weight", "network.1.proj.bias", "norm.weight", "head.bias"} <= names
    block = {name.removeprefix("network.2.1.") for name in names if name.startswith("network.2.1.")}
    layers = ["norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.sfc_h", "attn.sfc_w", "attn.reweight.fc1"]
    layers += ["attn.reweight.fc2", "attn.proj"]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert block == expected | {"attn.mlp_c.weight", "attn.sfc_h.offset", "attn.sfc_w.offset"}
