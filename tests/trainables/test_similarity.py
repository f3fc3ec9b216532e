import math
import weakref
from itertools import permutations

import pytest
import timm
import torch

import trainables.models  # noqa: F401 - registers our own
from trainables.build import normalization
from trainables.errors import InputError
from trainables.similarity import LinearCKA, centered_gram, compare, layer_names, layer_outputs, summary


def hsic_1(x, y):
    """Song et al. (2012), equation 5, as printed, in float64."""
    n, ones = len(x), torch.ones(len(x), dtype=torch.float64)
    k, l = (rows.double().flatten(1) @ rows.double().flatten(1).T for rows in (x, y))  # noqa: E741 - the paper's
    k.fill_diagonal_(0), l.fill_diagonal_(0)
    sums = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return (torch.trace(k @ l) + sums - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3))


def direct(batches):
    """CKA of two layers from the three averaged HSIC of its batches [(x, y), ...], all of one size."""
    cross, first, second = (
        torch.stack([hsic_1(pair[i], pair[j]) for pair in batches]).mean() for i, j in ((0, 1), (0, 0), (1, 1))
    )
    return (cross / (first * second).sqrt()).item()


def cka(*batches):
    similarity = LinearCKA()
    for layers in batches:
        similarity.update(layers)
    return similarity.matrix()


def related(n=24, seed=0, dtype=torch.float64):
    """Two layers of another shape that share a part of what they tell."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, 2, 3, generator=generator, dtype=dtype)
    mix = torch.randn(30, 12, generator=generator, dtype=dtype)
    return x, x.flatten(1) @ mix + 4 * torch.randn(n, 12, generator=generator, dtype=dtype)


def test_inner_products_are_the_u_statistic_of_hsic():
    x, y = related(n=6)
    k, l = (rows.flatten(1) @ rows.flatten(1).T for rows in (x, y))  # noqa: E741
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in permutations(range(6), 4)]
    expected = torch.stack(terms).mean()  # over ordered quadruples without repetition: unbiased by construction
    ours = (centered_gram(x) * centered_gram(y)).sum() / (6 * 3)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, hsic_1(x, y), rtol=1e-12, atol=0)


@pytest.mark.parametrize("n", [4, 5, 64])
def test_one_batch_is_the_closed_formula(n):
    x, y = related(n)
    matrix = cka([x, y])
    assert matrix[0, 1].item() == pytest.approx(direct([(x, y)]), rel=1e-10)
    assert 0.05 < abs(matrix[0, 1]) < 0.95, "the two layers must be neither equal nor unrelated"


def test_several_batches_average_the_three_terms_before_the_ratio():
    batches = [related(16, seed) for seed in range(5)]
    batches[2] = tuple(10 * layer for layer in batches[2])  # one that counts for more, so that the order matters
    matrix = cka(*batches)
    assert matrix[0, 1].item() == pytest.approx(direct(batches), rel=1e-10)
    assert matrix[0, 1].item() != pytest.approx(sum(direct([pair]) for pair in batches) / 5, rel=1e-3)


def test_a_short_batch_counts_by_its_images():
    long, short = related(20, 1), related(5, 2)
    cross, first, second = (
        (20 * hsic_1(long[i], long[j]) + 5 * hsic_1(short[i], short[j])) / 25 for i, j in ((0, 1), (0, 0), (1, 1))
    )
    assert cka(long, short)[0, 1].item() == pytest.approx((cross / (first * second).sqrt()).item(), rel=1e-10)


def test_a_layer_with_itself_is_1_and_the_matrix_is_symmetric():
    x, y = related()
    matrix = cka([x, y, x], [y[:, :6], y, y[:, :6]])
    assert torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)
    assert matrix[0, 2].item() == pytest.approx(1, rel=1e-12)
    assert (matrix.abs() <= 1 + 1e-12).all()


def test_rotation_scale_shift_and_order_of_features_do_not_matter():
    x, y = related()
    expected = cka([x, y])[0, 1].item()
    rows, generator = x.flatten(1), torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64)).Q
    order = torch.randperm(30, generator=generator)
    shift = 5 * torch.randn(30, generator=generator, dtype=torch.float64)
    for changed in (rows @ rotation, 7.3 * rows, -rows, rows[:, order], rows + shift):
        assert cka([changed, y])[0, 1].item() == pytest.approx(expected, rel=1e-9)


def test_a_linear_map_that_is_no_rotation_matters():
    x, y = related()
    rows = x.flatten(1)
    stretch = torch.linspace(0.1, 10, 30, dtype=torch.float64)  # invertible: nothing is lost
    assert abs(cka([rows * stretch, y])[0, 1] - cka([rows, y])[0, 1]) > 0.02
    assert cka([rows * stretch, rows])[0, 1] < 0.95


def test_unrelated_layers_have_none_even_in_small_batches_with_many_features():
    generator = torch.Generator().manual_seed(0)
    batches = [[torch.randn(8, 100, generator=generator) for _ in range(2)] for _ in range(400)]
    assert abs(cka(*batches)[0, 1]) < 0.02

    def biased(x, y):  # HSIC_0, which plain CKA uses
        k, l = (rows - rows.mean(0) for rows in (x.double(), y.double()))  # noqa: E741
        return ((k @ k.T) * (l @ l.T)).sum()

    x, y = batches[0]
    assert biased(x, y) / (biased(x, x) * biased(y, y)).sqrt() > 0.7, "what the unbiased estimator is for"


@pytest.mark.parametrize(("scale", "mean"), [(1.0, 0.0), (1.0, 1e4), (1e25, 0.0), (1e-25, 0.0), (1e20, 1e23)])
def test_float32_is_enough_for_large_activations_and_large_means(scale, mean):
    x, y = related(dtype=torch.float32)
    x, y = (scale * layer + mean for layer in (x, y))  # rounded to float32 here, once for both
    ours, exact = cka([x, y]), cka([x.double(), y.double()])
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_and_autocast_does_not_lower_ours(dtype):
    x, y = related(dtype=torch.float32)
    exact = cka([x.to(dtype).double(), y.to(dtype).double()])
    torch.testing.assert_close(cka([x.to(dtype), y.to(dtype)]), exact, rtol=0, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(cka([x, y]), cka([x.double(), y.double()]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 123.4, 1e30])
def test_features_that_do_not_vary_have_no_similarity(value):
    x, y = related(dtype=torch.float32)
    constant = torch.full((24, 7), value)
    constant[3] *= 1 + 1e-7  # another kernel's rounding
    matrix = cka([x, constant, y])
    assert matrix[1].isnan().all() and matrix[:, 1].isnan().all()
    assert matrix[0, 2].item() == pytest.approx(cka([x, y])[0, 1].item(), abs=1e-12), "the others keep theirs"


def test_features_that_do_not_vary_in_one_batch_only_are_averaged_in():
    x, y = related(8, 1)
    first, second = [(x, y), (torch.ones_like(x), related(8, 2)[1])]
    assert cka(first, second)[0, 1].item() == pytest.approx(direct([first, second]), rel=1e-10)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_spoil_their_own_layer_only(bad):
    x, y = related(dtype=torch.float32)
    broken = x.clone()
    broken[0, 0, 0, 0] = bad
    matrix = cka([x, broken, y], [x, x, y])
    assert matrix[1].isnan().all() and matrix[[0, 2]][:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("n", [1, 3])
def test_a_batch_below_four_images_is_refused(n):
    with pytest.raises(InputError, match=f"batch_size: unbiased HSIC needs 4 or more images a batch, not {n}"):
        LinearCKA().update([torch.randn(n, 5), torch.randn(n, 5)])


def test_nothing_of_a_batch_is_kept_but_one_number_a_pair():
    similarity = LinearCKA()
    for seed in range(3):
        layers = list(related(16, seed))
        alive = [weakref.ref(layer) for layer in layers]
        similarity.update(layers)
        del layers
        assert all(reference() is None for reference in alive)
        assert sum(value.numel() for value in vars(similarity).values()) == 4


NAMES = ("test_vit", "test_resnet", "test_efficientnet", "mixer_nano", "swin_pico", "levit_128s", "crossvit_tiny_240")


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_all_features_and_the_logits(name):
    from trainables.build import build_model

    model = build_model(name, num_classes=7, img_size=64).eval()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = layer_outputs(model, images)
        assert torch.equal(outputs[-1], model(images)) and outputs[-1].shape == (4, 7)
    names = layer_names(model)
    assert len(names) == len(outputs) == len(model.feature_info) + 1
    assert names[-1] == "logits" and len(set(names)) == len(names)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    return [timm.create_model(name, num_classes=5).eval() for name in ("test_vit", "test_resnet")]


def some_batches(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(n, 3, 32, 32, generator=generator), torch.randint(5, (n,), generator=generator)) for n in sizes]


def test_models_are_compared_in_their_own_normalisation(pair):
    batches = some_batches(8, 8, 3)  # the last one is too small for CKA, and counts for the classes
    result = compare(*pair, batches, num_classes=5)
    layers, classes = [], []
    with torch.no_grad():
        for model in pair:
            mean, std = (torch.tensor(part).view(3, 1, 1) for part in normalization(model))
            layers.append([layer_outputs(model, (pixels - mean) / std) for pixels, _ in batches])
            classes.append(torch.cat([outputs[-1].argmax(1) for outputs in layers[-1]]))
    target = torch.cat([target for _, target in batches])
    assert result.images == 19
    assert result.agreement == pytest.approx(100 * (classes[0] == classes[1]).double().mean().item())
    assert result.teacher_top1 == pytest.approx(100 * (classes[0] == target).double().mean().item())
    assert result.student_top1 == pytest.approx(100 * (classes[1] == target).double().mean().item())
    assert result.cka.shape == (len(result.teacher_layers), len(result.student_layers))
    for i in range(len(result.teacher_layers)):
        for j in range(len(result.student_layers)):
            pairs = [(layers[0][batch][i], layers[1][batch][j]) for batch in range(2)]
            assert result.cka[i, j].item() == pytest.approx(direct(pairs), abs=1e-5)
    ones = torch.ones(len(result.teacher_layers), dtype=torch.float64)
    torch.testing.assert_close(result.teacher_cka.diagonal(), ones)
    assert result.student_cka.shape == (len(result.student_layers),) * 2


def test_a_head_of_other_classes_is_not_judged_by_the_labels(pair):
    other = timm.create_model("test_resnet", num_classes=9)
    result = compare(pair[0], other, some_batches(6), num_classes=5)
    assert (result.agreement, result.student_top1) == (None, None)
    assert result.teacher_top1 is not None
    both = compare(other, other, some_batches(6), num_classes=5)
    assert both.agreement == 100 and both.teacher_top1 is None
    torch.testing.assert_close(both.cka, both.teacher_cka)


def test_no_batch_that_is_large_enough_is_refused(pair):
    with pytest.raises(InputError, match="needs 4 or more images a batch"):
        compare(*pair, some_batches(3), num_classes=5)


def test_a_matrix_in_a_few_numbers():
    nan = math.nan
    cka = torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.3, 0.1], [0.4, 0.6, 0.0], [0.3, 0.7, 0.2], [0.1, 0.2, 0.5]])
    found = summary(cka.double())  # four features and two, and the logits of both
    depths = [0.9, 0.8, 0.6, 0.7, 0.5]  # features 0, 1, 2, 3 beside 0, 0, 1, 1
    assert found["cka/same_depth"] == pytest.approx(sum(depths) / 5)
    assert found["cka/mean"] == pytest.approx(cka.mean().item())
    assert found["cka/closest"] == pytest.approx((0.9 + 0.7 + 0.5) / 3)
    assert found["cka/logits"] == pytest.approx(0.5)
    cka[:, 2] = nan
    found = summary(cka)
    assert math.isnan(found["cka/logits"])
    assert found["cka/same_depth"] == pytest.approx(sum(depths[:4]) / 4)
    assert found["cka/closest"] == pytest.approx((0.9 + 0.7) / 2)
    assert all(math.isnan(value) for value in summary(torch.full((3, 2), nan)).values())
