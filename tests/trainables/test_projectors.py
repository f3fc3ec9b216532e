import pytest
import torch

from trainables.projectors import ConvProjector, PatchMerging, PooledProjector, TokenProjector


def parameters(*modules):
    return sum(weight.numel() for module in modules for weight in module.parameters())


@pytest.mark.parametrize("classes, millions", [(100, 1.19), (1000, 3.04)])
def test_resnet18s_projectors_have_the_official_size(classes, millions):
    branches = [ConvProjector(64 * 2 ** (stage - 1), stage, 512, classes) for stage in (1, 2, 3, 4)]
    assert parameters(*branches) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("dim, classes, millions", [(192, 100, 3.78), (192, 1000, 4.48), (384, 100, 14.94)])
def test_token_projectors_have_the_official_size(dim, classes, millions):
    """DeiT-T and ResMLP-S12 on 14x14 tokens."""
    branches = [TokenProjector(dim, (14, 14), stage, classes, dim) for stage in (1, 2, 3, 4)]
    assert parameters(*branches) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("size", [(1, 1), (7, 9)])
def test_the_pooled_projector_is_a_linear_head_on_the_normed_mean(size):
    branch = PooledProjector(6, 5)
    assert parameters(branch) == 6 * 5 + 5 + 2 * 6
    x = torch.randn(2, 6, *size)
    mean = x.flatten(2).mean(2)
    normed = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(branch(x), normed @ branch.head.weight.T + branch.head.bias)


@pytest.mark.parametrize("size", [1, 2, 7, 9])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_conv_projectors_take_any_size_and_fewer_stages(stage, size):
    logits = ConvProjector(6, stage, 20, 5, num_stages=3)(torch.randn(2, 6, size, size))
    assert logits.shape == (2, 5)


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (7, 7), (14, 14), (15, 15), (28, 28), (29, 31), (37, 37)])
def test_token_projectors_take_any_grid(grid):
    branch = TokenProjector(8, grid, 4, 5, out_dim=12)
    logits = branch(torch.randn(2, 8, *grid))
    logits.sum().backward()
    assert logits.shape == (2, 5)
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in branch.parameters())


def test_depth_shrinks_with_the_stage():
    assert [len(TokenProjector(8, (7, 7), stage, 5, 8).blocks) for stage in (1, 2, 3, 4)] == [3, 2, 1, 1]
    assert [len(TokenProjector(8, (side, side), 1, 5, 8).merging) for side in (7, 13, 14, 28, 56)] == [0, 0, 1, 2, 3]


def test_a_width_that_four_heads_do_not_divide():
    assert TokenProjector(8, (7, 7), 4, 5, out_dim=9).blocks[0].attn.num_heads == 3


def test_merging_joins_neighbours_and_pads_with_zeros():
    tokens = torch.arange(9.0).reshape(1, 3, 3, 1)
    merging = PatchMerging(1, 4, act=False)
    merging.norm, merging.reduction = torch.nn.Identity(), torch.nn.Identity()
    merged = merging(tokens)
    assert merged[0, 0, 0].tolist() == [0, 1, 3, 4]
    assert merged[0, 1, 1].tolist() == [8, 0, 0, 0]


def test_initial_weights():
    torch.manual_seed(0)
    conv, token = ConvProjector(32, 3, 256, 100), TokenProjector(64, (14, 14), 4, 100, 64)
    assert conv.head.weight.std().item() == pytest.approx(0.02, rel=0.05) and not conv.head.bias.any()
    assert conv.chain[0][5].weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    linears = [module for module in token.modules() if isinstance(module, torch.nn.Linear)]
    assert all(linear.weight.std().item() == pytest.approx(0.02, rel=0.1) for linear in linears)
