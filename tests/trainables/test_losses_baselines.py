"""The other losses against their published formulas in float64 NumPy, written out; gradients by differences."""

import math

import numpy as np
import pytest
import torch

from trainables.losses.cc import cc_loss
from trainables.losses.crd import Contrast
from trainables.losses.dist import dist_loss
from trainables.losses.dkd import dkd_loss
from trainables.losses.fitnet import Hints
from trainables.losses.rkd import rkd_loss
from trainables.losses.rsd import Expander, rsd_loss
from trainables.losses.softened import standardized
from trainables.losses.temperature import CurriculumTemperature

B, C = 5, 4
TARGET = np.array([0, 2, 1, 3, 2])
STEP = 1e-5


def draw(*shape, seed=0, scale=1.5):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum()


def dkd(student, teacher, alpha=0.7, beta=3.0, T=2.0):
    total = 0.0
    for z_s, z_t, y in zip(student, teacher, TARGET, strict=True):
        p_s, p_t = softmax(z_s[None] / T)[0], softmax(z_t[None] / T)[0]
        binary = kl(np.array([p_t[y], 1 - p_t[y]]), np.array([p_s[y], 1 - p_s[y]]))
        rest_s, rest_t = np.delete(p_s, y) / (1 - p_s[y]), np.delete(p_t, y) / (1 - p_t[y])
        total += alpha * binary + beta * kl(rest_t, rest_s)
    return T**2 * total / B


def pearson(x, y):
    return np.corrcoef(x, y)[0, 1]


def dist(student, teacher, beta=0.7, gamma=3.0, T=2.0):
    p_s, p_t = softmax(student / T), softmax(teacher / T)
    inter = 1 - np.mean([pearson(p_s[i], p_t[i]) for i in range(B)])
    intra = 1 - np.mean([pearson(p_s[:, c], p_t[:, c]) for c in range(C)])
    return T**2 * (beta * inter + gamma * intra)


def smooth_l1(difference):
    size = abs(difference)
    return 0.5 * size**2 if size < 1 else size - 0.5


def rkd(student, teacher, distance_weight=25.0, angle_weight=50.0):
    def relations(x):
        distances = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        angles = np.zeros((B, B, B))
        for i in range(B):
            for j in range(B):
                for k in range(B):
                    if i not in (j, k):
                        one, other = x[j] - x[i], x[k] - x[i]
                        angles[i, j, k] = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        return distances / distances.sum() * B * (B - 1), angles

    parts = [
        np.mean([smooth_l1(a - b) for a, b in zip(ours.ravel(), theirs.ravel(), strict=True)])
        for ours, theirs in zip(relations(student), relations(teacher), strict=True)
    ]
    return distance_weight * parts[0] + angle_weight * parts[1]


def cc_adjacent(student, teacher):
    d = abs(student - teacher)
    return np.mean([d[i] @ d[i + 1] for i in range(B - 1)])


def cc_kernel(student, teacher):
    def kernel(x):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return np.array([[np.exp(-0.4 * ((a - b) ** 2).sum()) for b in unit] for a in unit])

    return ((kernel(teacher) - kernel(student)) ** 2).sum() / B**2


def rsd(student, teacher, kappa=0.05):
    def standardise(x):
        return (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-5)

    matrix = standardise(teacher).T @ standardise(student) / B
    dims = range(matrix.shape[0])
    return sum((1 if i == j else kappa) * (matrix[i, j] - (i == j)) ** 2 for i in dims for j in dims)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


LOSSES = {
    "dkd": (lambda s, t: dkd_loss(s, t, torch.from_numpy(TARGET), alpha=0.7, beta=3.0, temperature=2.0), dkd),
    "dist": (lambda s, t: dist_loss(s, t, beta=0.7, gamma=3.0, temperature=2.0), dist),
    "rkd": (lambda s, t: rkd_loss(s, t, distance_weight=25.0, angle_weight=50.0), rkd),
    "cc, adjacent": (lambda s, t: cc_loss(s, t, "adjacent"), cc_adjacent),
    "cc, kernel": (lambda s, t: cc_loss(s, t, "kernel"), cc_kernel),
    "rsd": (lambda s, t: rsd_loss(s, t, kappa=0.05), rsd),
}


def differences(function, x):
    """The gradient by central differences."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][place] += STEP
        moved[1][place] -= STEP
        gradient[place] = (function(moved[0]) - function(moved[1])) / (2 * STEP)
    return gradient


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_are_the_published_formulas(name, seed):
    ours, published = LOSSES[name]
    student, teacher = draw(B, C, seed=seed), draw(B, C, seed=seed + 10)
    leaf = tensor(student).requires_grad_()
    loss = ours(leaf, tensor(teacher))
    assert loss.item() == pytest.approx(published(student, teacher), rel=1e-5)
    loss.backward()
    expected = differences(lambda moved: published(moved, teacher), student)
    np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=2e-4, atol=2e-5)


def test_dkd_is_classic_kd_where_beta_is_the_teachers_rest():
    """The paper's eq. 5: KD = TCKD + (1 - p_t,target) NCKD, here for one image."""
    from trainables.losses import kd_loss

    student, teacher = torch.randn(1, C), torch.randn(1, C)
    rest = 1 - (teacher / 3).softmax(1)[0, 2].item()
    ours = dkd_loss(student, teacher, torch.tensor([2]), alpha=1.0, beta=rest, temperature=3.0)
    torch.testing.assert_close(ours, kd_loss(student, teacher, 3.0))


def test_dist_ignores_what_correlation_ignores():
    probabilities = torch.rand(B, C).softmax(1)
    blended = 0.5 * probabilities + 0.5 / C  # an affine map of each row and each column
    assert dist_loss(blended.log(), probabilities.log(), beta=1.0, gamma=1.0).abs() < 1e-5


def test_rkd_ignores_rotation_and_scale():
    x = torch.from_numpy(draw(B, 6)).float()
    rotation, _ = torch.linalg.qr(torch.from_numpy(draw(6, 6, seed=3)).float())
    assert rkd_loss(3 * x @ rotation, x, distance_weight=25.0, angle_weight=50.0) < 1e-6


def test_rsd_is_smallest_where_both_are_equal_and_decorrelated():
    white = torch.linalg.qr(torch.randn(64, 6) - 0)[0]
    white = torch.linalg.qr(white - white.mean(0))[0]
    assert rsd_loss(2 * white + 1, white, kappa=1.0) < 1e-3
    assert rsd_loss(white.roll(1, dims=1), white, kappa=1.0) > 6


def test_rsds_branch_is_as_wide_as_declared():
    branch = Expander(12, 20, 2)
    assert branch(torch.randn(4, 12)).shape == (4, 20)
    assert sum(weight.numel() for weight in branch.parameters()) == 12 * 24 + 2 * 24 + 24 * 20


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((3, 4, 4), (5, 4, 4)), ((3, 8, 8), (5, 4, 4)), ((3, 2, 2), (5, 6, 6)), ((3, 3, 3), (5, 4, 4))],
)
def test_hints_are_the_mean_squared_difference_on_the_smaller_grid(student, teacher):
    hints = Hints({1: student, 4: student}, {1: teacher, 2: teacher, 4: teacher})
    assert sorted(hints.regressors) == ["1", "4"]
    ours = {stage: draw(2, *student, seed=stage) for stage in (1, 4)}
    theirs = {stage: draw(2, *teacher, seed=stage + 5) for stage in (1, 2, 4)}

    def averaged(x, side):
        out = np.zeros((*x.shape[:2], side, side))
        for i, j in np.ndindex(side, side):
            rows, columns = (
                slice(place * n // side, math.ceil((place + 1) * n / side))
                for place, n in ((i, x.shape[2]), (j, x.shape[3]))
            )
            out[:, :, i, j] = x[:, :, rows, columns].mean(axis=(2, 3))
        return out

    expected, side = 0.0, min(student[1], teacher[1])
    for stage in (1, 4):
        weight = hints.regressors[str(stage)].weight.detach().numpy().astype(np.float64)[:, :, 0, 0]
        mapped = np.einsum("oc,bchw->bohw", weight, ours[stage])
        expected += ((averaged(mapped, side) - averaged(theirs[stage], side)) ** 2).mean()
    loss = hints(*({stage: torch.from_numpy(x).float() for stage, x in part.items()} for part in (ours, theirs)))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_crd_is_eq_18_over_a_memory_bank_that_follows():
    images, classes = 9, np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    torch.manual_seed(0)
    crd = Contrast(6, 7, torch.from_numpy(classes), dim=3, negatives=100, temperature=0.3, momentum=0.4)
    bank = crd.shard().numpy().astype(np.float64).copy()
    weights = {name: value.detach().numpy().astype(np.float64) for name, value in crd.named_parameters()}
    scales = [None, None]
    for number, index in enumerate(([0, 4, 7], [1, 8, 3])):
        student, teacher = draw(3, 6, seed=number), draw(3, 7, seed=number + 5)
        sides = [
            unit(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
            for name, x in (("student", student), ("teacher", teacher))
        ]
        expected = 0.0
        for side, (anchor, memory) in enumerate(((sides[0], bank[:, 3:]), (sides[1], bank[:, :3]))):
            scores = np.exp(anchor @ memory.T / 0.3)
            allowed = classes[None] != classes[index][:, None]
            near = scores[range(3), index]
            if scales[side] is None:
                scales[side] = (near.sum() + scores[allowed].sum()) / (3 + allowed.sum()) * images
            noise = allowed.sum(axis=1) / images
            for i in range(3):
                p = near[i] / scales[side]
                expected -= np.log(p / (p + noise[i] + 1e-7)) / 3
                for q in scores[i, allowed[i]] / scales[side]:
                    expected -= np.log(noise[i] / (q + noise[i] + 1e-7)) / 3
        at, y = torch.tensor(index), torch.from_numpy(classes[index])
        leaf = torch.from_numpy(student).float().requires_grad_()
        loss = crd(leaf, torch.from_numpy(teacher).float(), at, y, number)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()
        assert leaf.grad.abs().sum() > 0
        for place, row in enumerate(index):
            blend = [0.4 * bank[row, part] + 0.6 * sides[k][place] for k, part in enumerate((slice(0, 3), slice(3, 6)))]
            bank[row] = np.concatenate([part / np.linalg.norm(part) for part in blend])
        np.testing.assert_allclose(crd.shard().numpy(), bank, atol=1e-6)


def test_crds_negatives_are_drawn_by_the_steps_number_and_the_bank_survives_a_checkpoint():
    def make(rank=0, world_size=1):
        torch.manual_seed(0)
        return Contrast(4, 4, torch.arange(30) % 3, dim=2, negatives=8, rank=rank, world_size=world_size)

    whole, parts = make(), [make(rank, 3) for rank in range(3)]
    assert torch.equal(torch.stack([part.shard() for part in parts], dim=1).flatten(0, 1), whole.shard())
    inputs = (torch.randn(2, 4), torch.randn(2, 4), torch.tensor([3, 5]), torch.tensor([0, 2]))
    losses = [copy(*inputs, number) for copy, number in ((make(), 0), (make(), 0), (make(), 1))]
    assert losses[0] == losses[1] != losses[2]
    whole(*inputs, 0)
    for resumed in (make(), make(1, 2)):  # by as many workers or by others
        resumed.load_shards([whole.shard()[rank::3] for rank in range(3)])
        assert torch.equal(resumed.shard(), whole.shard()[resumed.rank :: resumed.world_size])


def test_standardised_logits_have_mean_0_and_deviation_1():
    logits = draw(B, C)
    expected = (logits - logits.mean(1, keepdims=True)) / (1e-7 + logits.std(1, ddof=1, keepdims=True))
    np.testing.assert_allclose(standardized(torch.from_numpy(logits)).numpy(), expected, rtol=1e-5, atol=1e-6)
    for hazard in (
        torch.zeros(2, C),
        torch.full((2, C), 7.0),
        1e30 * torch.randn(2, C),
        torch.tensor([[1e4, 0, 0, 0.0]]),
    ):
        leaf = hazard.clone().requires_grad_()
        out = standardized(leaf)
        out.square().sum().backward()
        assert out.isfinite().all() and leaf.grad.isfinite().all()


def test_the_curriculums_temperature_climbs_the_loss_faster_and_faster():
    curriculum = CurriculumTemperature(1.0, 21.0, epochs=10, strength=0.5)
    assert curriculum(0).item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    slope = 20 * math.exp(-1) / (1 + math.exp(-1)) ** 2
    for epoch, strength in ((0, 0.0), (5, 0.25), (10, 0.5), (40, 0.5)):
        curriculum.raw.grad = None
        (3 * curriculum(epoch)).backward()
        assert curriculum.raw.grad.item() == pytest.approx(-3 * strength * slope, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("eps", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("enhance", ["all", "target"])
def test_a_learned_temperature_gets_the_gradient_of_both_sides(eps, enhance):
    from trainables.losses import kd_loss, ofa_loss

    student, teacher, target = (
        torch.from_numpy(draw(B, C)),
        torch.from_numpy(draw(B, C, seed=2)),
        torch.from_numpy(TARGET),
    )

    def ofa(T):
        p_s, p_t = softmax(student.numpy() / T), softmax(teacher.numpy() / T)
        m = np.eye(C)[TARGET]
        weights = (p_t + m) ** eps - m if enhance == "all" else np.where(m == 1, (1 + p_t) ** eps, p_t)
        return -(weights * np.log(p_s)).sum() / B

    def kd(T):
        p_s, p_t = softmax(student.numpy() / T), softmax(teacher.numpy() / T)
        return T**2 * kl(p_t, p_s) / B

    for ours, published in (
        (lambda T: ofa_loss(student, teacher, target, eps=eps, temperature=T, enhance=enhance), ofa),
        (lambda T: kd_loss(student, teacher, T), kd),
    ):
        temperature = torch.tensor(2.5, requires_grad=True)
        ours(temperature).backward()
        expected = (published(2.5 + STEP) - published(2.5 - STEP)) / (2 * STEP)
        assert temperature.grad.item() == pytest.approx(expected, rel=1e-3)


def test_a_learned_temperature_survives_teachers_that_are_sure():
    from trainables.losses import ofa_loss

    temperature = torch.tensor(1.0, requires_grad=True)
    loss = ofa_loss(
        torch.randn(3, C), 1e4 * torch.randn(3, C), torch.tensor([0, 1, 2]), eps=0.5, temperature=temperature
    )
    loss.backward()
    assert loss.isfinite() and temperature.grad.isfinite()
