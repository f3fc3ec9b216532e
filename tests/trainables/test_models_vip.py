import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay

from trainables.build import build_model
from trainables.models.vip import PermuteMlp, VisionPermutator
from trainables.student import Student, available_stages

FEATURES = {
    "vip_s7": [(192, 32)] + [(384, 16)] * 3,
    "vip_m7": [(256, 32)] * 2 + [(512, 16)] * 2,
}


def small(**changes):
    torch.manual_seed(0)
    own = {"num_classes": 5, "img_size": 16, "patch_size": 2, "depths": (1, 2, 1), "embed_dims": (16, 32, 32)}
    return VisionPermutator(**(own | changes))


@pytest.mark.parametrize("name, published", [("vip_s7", 25e6), ("vip_m7", 55e6)])
def test_parameters_and_features_are_the_papers(name, published):
    with torch.device("meta"):
        model = timm.create_model(name)
        final, features = model.forward_intermediates(torch.zeros(1, 3, 224, 224))
        assert model.forward_head(final).shape == (1, 1000)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(published, rel=0.02)
    assert [(f.shape[1], *f.shape[2:]) for f in features] == [(c, side, side) for c, side in FEATURES[name]]
    told = [(info["num_chs"], 224 // info["reduction"]) for info in model.feature_info]
    assert told == FEATURES[name]
    assert model.num_features == FEATURES[name][-1][0] and model.pretrained_cfg["classifier"] == "head"


def test_names_in_the_state_dict():
    with torch.device("meta"):
        names = set(timm.create_model("vip_s7").state_dict())
    block = {f"attn.{part}.weight" for part in ("mlp_h", "mlp_w", "mlp_c")}
    block |= {f"{layer}.{kind}" for layer in ("norm1", "norm2") for kind in ("weight", "bias")}
    block |= {
        f"{layer}.{kind}"
        for layer in ("attn.reweight.fc1", "attn.reweight.fc2", "attn.proj", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    }
    stages = {0: 4, 2: 3, 3: 8, 4: 3}
    expected = {f"network.{i}.{j}.{part}" for i, depth in stages.items() for j in range(depth) for part in block}
    outside = ("patch_embed.proj", "network.1.proj", "norm", "head")
    assert names == expected | {f"{layer}.{kind}" for layer in outside for kind in ("weight", "bias")}


def naive_permute_mlp(module, x):
    """Number by number: every output is a sum over one column, one row or one token."""
    batch, height, width, dim = x.shape
    high, wide, deep = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    for b in range(batch):
        for c in range(dim):
            by_h, by_w = dim // height, dim // width  # channels of one segment
            h_start, w_start = c // by_h * by_h, c // by_w * by_w
            for i in range(height):
                for j in range(width):
                    row = i * by_h + c - h_start
                    for k in range(height):
                        for s in range(by_h):
                            high[b, i, j, c] += module.mlp_h.weight[row, k * by_h + s] * x[b, k, j, h_start + s]
                    row = j * by_w + c - w_start
                    for k in range(width):
                        for s in range(by_w):
                            wide[b, i, j, c] += module.mlp_w.weight[row, k * by_w + s] * x[b, i, k, w_start + s]
                    for s in range(dim):
                        deep[b, i, j, c] += module.mlp_c.weight[c, s] * x[b, i, j, s]
    out = torch.zeros_like(x)
    for b in range(batch):
        pooled = sum((high + wide + deep)[b, i, j] for i in range(height) for j in range(width)) / (height * width)
        hidden = F.gelu(module.reweight.fc1.weight @ pooled + module.reweight.fc1.bias)
        scores = module.reweight.fc2.weight @ hidden + module.reweight.fc2.bias
        for c in range(dim):
            three = scores[3 * c : 3 * c + 3].exp()
            a, e, d = three / three.sum()
            out[b, :, :, c] = a * high[b, :, :, c] + e * wide[b, :, :, c] + d * deep[b, :, :, c]
    return out @ module.proj.weight.T + module.proj.bias


@pytest.mark.parametrize("height, width, dim", [(3, 3, 6), (2, 4, 8)])
def test_permute_mlp_is_what_loops_compute(height, width, dim):
    torch.manual_seed(0)
    module = PermuteMlp(dim).double()
    for weight in module.parameters():
        torch.nn.init.normal_(weight)
    x = torch.randn(2, height, width, dim, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(x), naive_permute_mlp(module, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "size, reason",
    [
        (64, "not a multiple"),
        (0, "not a multiple"),
        (70, "do not split"),
        (21, "cannot be halved"),
        (1, "not a multiple"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(size, reason):
    with pytest.raises(ValueError, match=reason):
        timm.create_model("vip_s7", img_size=size)


def test_images_may_be_oblong_but_only_of_the_built_size():
    model = small(img_size=(16, 8)).eval()
    assert [list(f.shape[1:]) for f in model.forward_intermediates(torch.randn(1, 3, 16, 8))[1]] == [
        [16, 8, 4],
        [32, 4, 2],
        [32, 4, 2],
    ]
    with pytest.raises(AssertionError, match="height"):
        model(torch.randn(1, 3, 8, 16))


def test_intermediates():
    model = small(drop_rate=0.2, drop_path_rate=0.2)
    x = torch.randn(2, 3, 16, 16)
    for mode in (True, False):
        model.train(mode)
        torch.manual_seed(1)
        logits = model(x)
        torch.manual_seed(1)
        final, features = model.forward_intermediates(x)
        assert torch.equal(model.forward_head(final), logits)
    assert torch.equal(final, model.forward_features(x))
    (chosen,) = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(chosen, features[1])
    normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
    assert torch.equal(normed, final.permute(0, 3, 1, 2))
    assert model.forward_head(final, pre_logits=True).shape == (2, 32)
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_the_rest_of_timms_interface():
    model, x = small(), torch.randn(2, 3, 16, 16)
    logits = model(x)
    model.set_grad_checkpointing()
    checkpointed = model(x)
    assert torch.equal(checkpointed, logits)
    checkpointed.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert len(param_groups_layer_decay(model, layer_decay=0.5)) > 4
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.get_classifier() is model.head
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 4, 4, 32)
    only = timm.create_model("vip_s7", features_only=True, img_size=28, out_indices=(0, 1))
    assert [list(f.shape) for f in only(torch.randn(1, 3, 28, 28))] == [[1, 192, 4, 4], [1, 384, 2, 2]]


@pytest.mark.parametrize("name, size, resized", [("vip_s7", 28, False), ("vip_m7", 28, False), ("vip_s7", 20, True)])
def test_a_student_of_all_stages_trains(name, size, resized):
    torch.manual_seed(0)
    kwargs = {"depths": (1, 1, 1, 1)} if resized else None
    model = build_model(name, num_classes=5, img_size=size, kwargs=kwargs, drop=0.1, drop_path=0.1)
    assert hasattr(model, "own_size") is resized  # a size that does not fit is resized inside, to 224
    assert available_stages(model) == [1, 2, 3, 4]
    student = Student(model, 5, size, [1, 2, 3, 4])
    x = torch.randn(4, 3, size, size)
    logits, heads, *_ = student.train()(x)
    assert logits.shape == (4, 5) and all(head.shape == (4, 5) for head in heads.values())
    (logits.square().mean() + sum(head.square().mean() for head in heads.values())).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in student.parameters())
    assert torch.equal(student.eval()(x)[0], model(x))
