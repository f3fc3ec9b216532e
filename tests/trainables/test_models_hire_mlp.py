import pytest
import timm
import torch

from trainables.models.hire_mlp import HireMixer, rearrange, restore

PUBLISHED = {"hire_mlp_tiny": 18, "hire_mlp_small": 33, "hire_mlp_base": 58}  # millions
TINY = {"depths": (2, 1, 3, 1), "dims": (8, 16, 24, 32)}


def tiny(seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model("hire_mlp_tiny", **{"num_classes": 5, **TINY, **kwargs})


def in_place_only(mixer):
    """The mixer with branch weights that look at nothing, so that only regions carry information."""
    torch.nn.init.zeros_(mixer.reweight.fc2.weight)
    return mixer.eval()


def reached(mixer, row, column, size):
    """Where what the mixer gives at one place comes from."""
    x = torch.randn(1, 8, size, size, requires_grad=True)
    mixer(x)[0, :, row, column].sum().backward()
    return {tuple(place) for place in x.grad[0].abs().sum(0).nonzero().tolist()}


@pytest.mark.parametrize("name, millions", PUBLISHED.items())
def test_parameters_are_as_many_as_published(name, millions):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_stages_at_224_are_as_published():
    with torch.device("meta"):
        model = timm.create_model("hire_mlp_small")
        final, features = model.forward_intermediates(torch.empty(1, 3, 224, 224))
    sizes = [(64, 56, 56), (128, 28, 28), (320, 14, 14), (512, 7, 7)]
    assert [tuple(feature.shape[1:]) for feature in features] == sizes
    assert model.forward_head(final).shape == (1, 1000) and model.num_features == 512
    assert [info["num_chs"] for info in model.feature_info] == [64, 128, 320, 512]


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("size", [1, 2, 7, 12])
@pytest.mark.parametrize("region", [1, 2, 3, 4])
def test_restoring_undoes_rearranging(dim, size, region):
    shape = [2, 3, 5, 5]
    shape[dim] = size
    x = torch.randn(shape)
    stacked = rearrange(x, dim, region)
    assert stacked.shape[1] == 3 * region and stacked.shape[dim] == -(-size // region)
    assert torch.equal(restore(stacked, dim, region, size), x)


def test_a_region_holds_neighbours_and_the_last_one_continues_in_a_circle():
    x = torch.arange(5.0).reshape(1, 1, 5, 1).expand(1, 1, 5, 2)
    stacked = rearrange(x, 2, 3)
    assert stacked[0, :, :, 0].T.tolist() == [[0, 1, 2], [3, 4, 0]]
    assert torch.equal(rearrange(x.mT, 3, 3), stacked.mT)
    assert rearrange(x[:, :, :1], 2, 4).flatten().tolist() == [0] * 8  # a circle shorter than what is missing


def test_without_a_shift_information_stays_in_the_region():
    torch.manual_seed(0)
    mixer = in_place_only(HireMixer(8, region=3, step=0))
    assert reached(mixer, 4, 0, 9) == {(3, 0), (4, 0), (5, 0), (4, 1), (4, 2)}


def test_a_shift_moves_information_across_regions():
    torch.manual_seed(0)
    mixer = in_place_only(HireMixer(8, region=3, step=1))
    # regions now begin one place earlier, and the first one closes the circle
    assert reached(mixer, 4, 0, 9) == {(2, 0), (3, 0), (4, 0), (4, 8), (4, 1)}


def test_blocks_of_a_stage_shift_in_turn():
    model = timm.create_model("hire_mlp_small", dims=(8, 8, 8, 8))
    steps = [[block.attn.step for block in model.network[2 * stage]] for stage in range(4)]
    assert steps == [[0, 2, 0], [0, 2, 0, 2], [0, 1, 2, 0, 1, 2, 0, 1, 2, 0], [0, 1, 0]]
    assert [model.network[2 * stage][0].attn.region for stage in range(4)] == [4, 3, 3, 2]


def test_state_dict_is_laid_out_as_officially():
    names = {name.rpartition(".")[0] for name in tiny().state_dict()}
    assert {"patch_embed.proj", "patch_embed.norm", "network.1.proj", "network.1.norm", "norm", "head"} <= names
    block = {name.removeprefix("network.0.1.") for name in names if name.startswith("network.0.1.")}
    mixer = ["mlp_h1", "mlp_h1_norm", "mlp_h2", "mlp_w1", "mlp_w1_norm", "mlp_w2", "mlp_c", "reweight.fc1"]
    mixer += ["reweight.fc2", "proj"]
    assert block == {"norm1", "norm2", "mlp.fc1", "mlp.fc2", *(f"attn.{layer}" for layer in mixer)}
