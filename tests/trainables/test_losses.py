import numpy as np
import pytest
import torch

from trainables.losses import kd_loss, ofa_loss

B, C = 6, 9


def softmax(z):
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def oracle(student, teacher, classes, eps, temperature, enhance):
    """Loss and its gradient by hand, in float64: d/dz_s = (sum(w) * p_s - w) / (T * B)."""
    p_s, p_t = softmax(student / temperature), softmax(teacher / temperature)
    weights = np.empty_like(p_t)
    for i, row in enumerate(p_t):
        for c, p in enumerate(row):
            if c == classes[i]:
                weights[i, c] = (1 + p) ** eps - (1 if enhance == "all" else 0)
            else:
                weights[i, c] = p**eps if enhance == "all" else p
    loss = -(weights * np.log(p_s)).sum() / len(p_s)
    gradient = (weights.sum(axis=1, keepdims=True) * p_s - weights) / (temperature * len(p_s))
    return loss, gradient


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, C)) * 3, rng.normal(size=(B, C)) * 3, rng.integers(C, size=B)


def as_tensors(student, teacher, classes, dtype=torch.float32):
    return (
        torch.tensor(student, dtype=dtype).requires_grad_(),
        torch.tensor(teacher, dtype=dtype),
        torch.as_tensor(classes),
    )


@pytest.mark.parametrize("enhance", ["all", "target"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("eps", [0.5, 1.0, 1.2, 2.0, 4.0])
def test_value_and_gradient_are_the_formulas(batch, eps, temperature, enhance):
    student, teacher, target = as_tensors(*batch)
    loss = ofa_loss(student, teacher, target, eps=eps, temperature=temperature, enhance=enhance)
    loss.backward()
    expected, gradient = oracle(*batch, eps, temperature, enhance)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(student.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_hand_computed_case():
    student, teacher = torch.zeros(1, 2), torch.log(torch.tensor([[0.75, 0.25]]))
    ln2 = np.log(2)
    assert ofa_loss(student, teacher, torch.tensor([0]), eps=2).item() == pytest.approx((1.75**2 - 1 + 0.25**2) * ln2)
    paper = ofa_loss(student, teacher, torch.tensor([0]), eps=2, enhance="target")
    assert paper.item() == pytest.approx((1.75**2 + 0.25) * ln2)


def test_eps_1_is_soft_cross_entropy_and_the_papers_form_adds_one_hard_term(batch):
    student, teacher, target = as_tensors(*batch)
    soft = torch.nn.functional.cross_entropy(student, teacher.softmax(1))
    hard = torch.nn.functional.cross_entropy(student, target)
    torch.testing.assert_close(ofa_loss(student, teacher, target, eps=1.0), soft)
    torch.testing.assert_close(ofa_loss(student, teacher, target, eps=1.0, enhance="target"), soft + hard)


def test_the_teacher_gets_no_gradient(batch):
    student, teacher, target = as_tensors(*batch)
    teacher.requires_grad_()
    (ofa_loss(student, teacher, target, eps=1.5) + kd_loss(student, teacher, 2.0)).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("enhance", ["all", "target"])
def test_the_dominant_class_of_mixed_labels_is_enhanced_and_ties_take_the_lower_index(batch, enhance):
    student, teacher, _ = as_tensors(*batch)
    mixed = torch.zeros(B, C)
    mixed[:, 7], mixed[:, 2] = 0.6, 0.4
    mixed[0, 7] = mixed[0, 2] = 0.5
    classes = torch.tensor([2] + [7] * (B - 1))
    options = {"eps": 1.5, "enhance": enhance}
    torch.testing.assert_close(
        ofa_loss(student, teacher, mixed, **options), ofa_loss(student, teacher, classes, **options), rtol=0, atol=0
    )


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("enhance", ["all", "target"])
@pytest.mark.parametrize("eps", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("gap", [90.0, 1e4, 6e4])
def test_large_gaps_stay_finite(gap, eps, enhance, dtype, autocast):
    student = (torch.eye(4) * gap).to(dtype).requires_grad_()
    teacher = (-torch.eye(4) * gap).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = [
            ofa_loss(student, teacher, target, eps=eps, temperature=temperature, enhance=enhance)
            for target in (torch.arange(4), torch.tensor([1, 0, 0, 0]))
            for temperature in (0.01, 1.0)
        ] + [kd_loss(student, teacher, 0.5)]
    loss = sum(losses)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and student.grad.isfinite().all()


def test_the_whole_range_of_float32_stays_finite_and_a_diverged_student_shows():
    most = torch.finfo(torch.float32).max
    student = torch.tensor([[most, -most, 0.0]], requires_grad=True)
    loss = ofa_loss(student, -student.detach(), torch.tensor([1]), eps=1.5, temperature=0.5)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()
    diverged = torch.tensor([[float("inf"), 0.0, 0.0]])
    assert ofa_loss(diverged, torch.zeros(1, 3), torch.tensor([1]), eps=1.0).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_loses_nothing_beyond_the_inputs_rounding(batch, dtype):
    student, teacher, target = as_tensors(*batch, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        low = ofa_loss(student, teacher, target, eps=1.3, temperature=2.0)
    full = ofa_loss(student.float(), teacher.float(), target, eps=1.3, temperature=2.0)
    torch.testing.assert_close(low, full, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_is_the_scaled_divergence(batch, temperature):
    student, teacher, _ = as_tensors(*batch)
    p_s, p_t = softmax(batch[0] / temperature), softmax(batch[1] / temperature)
    loss = kd_loss(student, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(temperature**2 * (p_t * np.log(p_t / p_s)).sum() / B, rel=1e-5)
    np.testing.assert_allclose(student.grad, temperature * (p_s - p_t) / B, rtol=1e-4, atol=1e-6)
