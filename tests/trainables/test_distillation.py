import pytest
import timm.loss
import torch

from trainables.config import TrialConfig
from trainables.distillation import loss_terms
from trainables.distillers.base import Step, StudentOutput, TeacherOutput
from trainables.losses import kd_loss, ofa_loss

STAGES = [1, 3, 4]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    student, teacher, *heads = (torch.randn(5, 4, generator=generator) for _ in range(2 + len(STAGES)))
    return student, dict(zip(STAGES, heads, strict=True)), teacher, torch.tensor([0, 1, 2, 3, 0])


def terms_of(config, student, heads, teacher, target):
    step = Step(StudentOutput(student, heads), TeacherOutput(teacher), target, temperature=config.temperature)
    return loss_terms(config, step, {})


def config(**fields):
    return TrialConfig(**({"teacher": "t", "student": "s", "epochs": 1, "stages": STAGES} | fields))


def test_ofa_weighs_each_term_and_sums_the_stages(batch):
    student, heads, teacher, target = batch
    fields = {"gt_loss_weight": 0.3, "kd_loss_weight": 0.7, "ofa_loss_weight": 0.11, "temperature": 2.0}
    terms = terms_of(config(eps=[1.1, 1.2, 1.3, 1.4], **fields), student, heads, teacher, target)
    options = {"temperature": 2.0}
    gt = torch.nn.functional.cross_entropy(student, target)
    kd = ofa_loss(student, teacher, target, eps=1.4, **options)
    stage_eps = {1: 1.1, 3: 1.2, 4: 1.3}
    ofa = sum(ofa_loss(heads[stage], teacher, target, eps=eps, **options) for stage, eps in stage_eps.items())
    torch.testing.assert_close(terms, {"gt": gt, "kd": kd, "ofa": ofa, "loss": 0.3 * gt + 0.7 * kd + 0.11 * ofa})
    assert all(term.shape == () and term.dtype == torch.float32 for term in terms.values())


@pytest.mark.parametrize("eps", [1.5, [1.5]])
def test_one_eps_serves_all(batch, eps):
    student, heads, teacher, target = batch
    torch.testing.assert_close(
        terms_of(config(eps=eps), student, heads, teacher, target),
        terms_of(config(eps=[1.5] * 4), student, heads, teacher, target),
    )


def test_the_papers_form_can_be_chosen(batch):
    student, heads, teacher, target = batch
    terms = terms_of(config(eps=1.5, enhance="target"), student, heads, teacher, target)
    torch.testing.assert_close(terms["kd"], ofa_loss(student, teacher, target, eps=1.5, enhance="target"))


def test_stages_without_a_projector_add_nothing(batch):
    student, _, teacher, target = batch
    terms = terms_of(config(eps=[1.0, 1.0, 1.0, 2.0], ofa_loss_weight=0.0), student, {}, teacher, target)
    assert terms["ofa"] == 0
    torch.testing.assert_close(terms["kd"], ofa_loss(student, teacher, target, eps=2.0))


def test_temperature_squared_scales_the_ofa_losses_only(batch):
    fields = {"temperature": 3.0, "eps": 1.2}
    plain = terms_of(config(**fields), *batch)
    squared = terms_of(config(temperature_squared=True, **fields), *batch)
    torch.testing.assert_close(squared["kd"], 9 * plain["kd"])
    torch.testing.assert_close(squared["ofa"], 9 * plain["ofa"])
    torch.testing.assert_close(squared["gt"], plain["gt"])
    kd = {"distiller": "kd", "temperature": 3.0}
    torch.testing.assert_close(terms_of(config(temperature_squared=True, **kd), *batch), terms_of(config(**kd), *batch))


def test_normalized_weights_sum_to_one(batch):
    fields = {"gt_loss_weight": 1.0, "kd_loss_weight": 2.0, "ofa_loss_weight": 5.0}
    terms = terms_of(config(normalize_loss_weights=True, **fields), *batch)
    torch.testing.assert_close(terms["loss"], terms["gt"] / 8 + terms["kd"] / 4 + terms["ofa"] * 5 / 8)


def test_kd_is_hintons(batch):
    student, _, teacher, target = batch
    fields = {"distiller": "kd", "temperature": 4.0, "gt_loss_weight": 0.1, "kd_loss_weight": 0.9}
    terms = terms_of(config(**fields), student, {}, teacher, target)
    torch.testing.assert_close(terms["kd"], kd_loss(student, teacher, 4.0))
    torch.testing.assert_close(terms["loss"], 0.1 * terms["gt"] + 0.9 * terms["kd"])
    assert terms["ofa"] == 0


def test_none_needs_no_teacher(batch):
    student, _, _, target = batch
    terms = terms_of(config(distiller="none", gt_loss_weight=0.5), student, {}, None, target)
    assert terms["kd"] == terms["ofa"] == 0
    torch.testing.assert_close(terms["loss"], 0.5 * torch.nn.functional.cross_entropy(student, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cross_entropy_is_timms(batch, dtype):
    student, _, _, target = batch
    student, mixed = student.to(dtype), torch.randn(5, 4).softmax(1)

    def gt(target, **fields):
        with torch.autocast("cpu", torch.bfloat16):
            return terms_of(config(distiller="none", **fields), student, {}, None, target)["gt"]

    logits = student.float()
    torch.testing.assert_close(gt(target, smoothing=0.1), timm.loss.LabelSmoothingCrossEntropy(0.1)(logits, target))
    torch.testing.assert_close(gt(mixed, smoothing=0.1), timm.loss.SoftTargetCrossEntropy()(logits, mixed))
    bce = timm.loss.BinaryCrossEntropy(smoothing=0.2)
    for labels in (target, mixed):
        torch.testing.assert_close(gt(labels, smoothing=0.2, bce_loss=True), bce(logits, labels))


def test_gradients_reach_every_head(batch):
    student, heads, teacher, target = batch
    leaves = [student, *heads.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    terms_of(config(), student, heads, teacher, target)["loss"].backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)
