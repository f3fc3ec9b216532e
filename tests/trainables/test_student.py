import pytest
import timm
import torch

from trainables.build import build_model, pooled_embedding
from trainables.config import TrialConfig
from trainables.cost import parameters
from trainables.distillation import loss_terms
from trainables.distillers.base import STUDENT_EMBEDDING, STUDENT_FEATURES, Step, TeacherOutput
from trainables.errors import InputError
from trainables.projectors import ConvProjector, PooledProjector, TokenProjector
from trainables.student import Student, available_stages, stages_of

SMALL_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
# name, image side, timm arguments, stages, kind of projector
FAMILIES = [
    ("test_resnet", 64, {}, 4, ConvProjector),
    ("test_efficientnet", 64, {}, 4, ConvProjector),
    ("test_convnext", 64, {}, 4, ConvProjector),
    ("test_mambaout", 64, {}, 4, ConvProjector),  # channels last inside
    ("swin_tiny_patch4_window7_224", 64, SMALL_SWIN, 4, ConvProjector),
    ("test_vit", 64, {}, 4, TokenProjector),  # class token
    ("test_vit2", 48, {}, 4, TokenProjector),  # an odd grid of 3
    ("test_vit3", 80, {}, 4, TokenProjector),
    ("test_vit", 70, {}, 4, TokenProjector),  # resizes inside
    ("resmlp_12_224", 32, {}, 4, TokenProjector),
    ("gmlp_ti16_224", 32, {}, 4, TokenProjector),
    ("deit_tiny_patch16_224", 240, {"embed_dim": 24, "depth": 8}, 4, TokenProjector),  # a grid of 15, merged
    ("levit_128s", 64, {}, 3, ConvProjector),
    ("vip_s7", 28, {"depths": (1, 1, 1, 1)}, 4, TokenProjector),  # two resolutions
    ("efficientvim_m1", 64, {}, 3, ConvProjector),  # its final feature is a list
    ("coat_lite_tiny", 64, {}, 4, ConvProjector),  # so is this one's
]


def built(name, size, kwargs, classes=5, seed=0):
    torch.manual_seed(seed)
    return build_model(name, num_classes=classes, img_size=size, kwargs=kwargs)


def all_stages(model, size, **options):
    return Student(model, 5, size, available_stages(model), **options)


@pytest.mark.parametrize("name, size, kwargs, count, kind", FAMILIES)
def test_one_pass_gives_the_models_own_logits_and_trains_everything(name, size, kwargs, count, kind):
    model = built(name, size, kwargs)
    student = all_stages(model, size)
    assert list(student.projectors) == [str(stage) for stage in range(1, count + 1)]
    assert all(type(branch) is kind for branch in student.projectors.values())
    x = torch.randn(4, 3, size, size)
    for mode in (False, True):
        student.train(mode)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        output = student(x)
        logits, heads = output.logits, output.stage_logits
        assert torch.equal(logits, expected)
    assert list(heads) == list(range(1, count + 1)) and all(head.shape == (4, 5) for head in heads.values())

    config = TrialConfig(teacher="t", student=name, epochs=1, stages=list(heads))
    step = Step(output, TeacherOutput(torch.randn(4, 5)), torch.tensor([0, 1, 2, 3]))
    loss_terms(config, step, {})["loss"].backward()
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in trained)


def test_the_model_alone_is_a_plain_timm_model():
    student = all_stages(built("test_resnet", 64, {}), 64)
    plain = timm.create_model("test_resnet", num_classes=5)
    plain.load_state_dict(student.model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(student.eval()(x)[0], plain.eval()(x))


@pytest.mark.parametrize("stages", [[], [4], [1, 3]])
def test_a_subset_of_stages(stages):
    model = built("test_resnet", 64, {})
    x = torch.randn(2, 3, 64, 64)
    full, part = all_stages(model, 64).eval(), Student(model, 5, 64, stages).eval()
    part.projectors.load_state_dict({k: v for k, v in full.projectors.state_dict().items() if int(k[0]) in stages})
    (logits, heads, *_), (all_logits, all_heads, *_) = part(x), full(x)
    assert torch.equal(logits, all_logits) and list(heads) == stages
    assert all(torch.equal(heads[stage], all_heads[stage]) for stage in stages)


def test_building_leaves_the_model_as_it_was():
    model = built("test_resnet", 64, {})
    model.bn1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    Student(model, 5, 64, [])
    assert torch.equal(torch.get_rng_state(), state)
    all_stages(model, 64)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and not model.bn1.training
    torch.set_rng_state(state)
    ConvProjector(model.feature_info[1]["num_chs"], 1, model.num_features, 5)
    expected = torch.get_rng_state()
    torch.set_rng_state(state)
    Student(model, 5, 64, [1])
    assert torch.equal(torch.get_rng_state(), expected), "the dummy pass drew random numbers"


@pytest.mark.parametrize(
    "name, taps, expected",
    [
        ("resnet18", "ofakd", [1, 2, 3, 4]),  # not the stem
        ("resnet18", "even", [1, 2, 3, 4]),
        ("swin_tiny_patch4_window7_224", "ofakd", [0, 1, 2, 3]),
        ("deit_tiny_patch16_224", "ofakd", [1, 3, 9, 11]),
        ("deit_tiny_patch16_224", "even", [2, 5, 8, 11]),
        ("deit_tiny_patch16_224", [0, 5], [0, 5]),
        ("beitv2_large_patch16_224", "ofakd", [1, 3, 21, 23]),
        ("test_vit", "ofakd", [1, 2, 4, 5]),
        ("levit_128s", "ofakd", [0, 1, 2]),
        ("levit_128s", "even", [0, 1, 2]),
        ("resnet18", ["layer1", "layer4"], [1, 4]),
    ],
)
def test_taps(name, taps, expected):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert stages_of(model, taps) == expected
    assert available_stages(model, taps) == list(range(1, len(expected) + 1))


@pytest.mark.parametrize("taps", [[], [0, 0], [1, 0], [-1], [12], [0, 1, 2, 3, 4]])
def test_taps_that_are_not_there(taps):
    with pytest.raises(InputError, match=r"taps=.*0 to 5"):
        stages_of(timm.create_model("test_vit"), taps)


def test_modules_that_are_not_there_or_out_of_order():
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    with pytest.raises(InputError, match=r"taps: resnet18 has no feature 'layer_1'; there are layer1"):
        stages_of(model, ["layer_1", "layer2"])
    with pytest.raises(InputError, match=r"taps=layer2,layer1: .*layer1,layer2"):
        stages_of(model, ["layer2", "layer1"])


def test_explicit_taps_and_a_forced_projector():
    model = built("test_vit", 64, {})
    student = Student(model, 5, 64, [1, 2], taps=[0, 3], projector="conv").eval()
    x = torch.randn(2, 3, 64, 64)
    _, features = model.forward_intermediates(x)
    assert isinstance(student.projectors["1"], ConvProjector)
    for stage, index in ((1, 0), (2, 3)):
        assert torch.equal(student(x).stage_logits[stage], student.projectors[str(stage)](features[index]))
    for kind, branch in (("token", TokenProjector), ("pooled", PooledProjector)):
        assert isinstance(all_stages(built("test_resnet", 64, {}), 64, projector=kind).projectors["1"], branch)


def test_a_stage_the_model_has_not():
    with pytest.raises(InputError, match=r"stages=\[1, 4\]: levit_128s has stages 1, 2, 3; leave out 4"):
        Student(built("levit_128s", 64, {}), 5, 64, [1, 4])


def test_the_projectors_do_not_change_the_students_start():
    bare, one, four = (
        Student(built("test_vit", 64, {}), 5, 64, stages).model.state_dict() for stages in ([], [2], [1, 2, 3, 4])
    )
    assert all(torch.equal(start[key], bare[key]) for start in (one, four) for key in bare)


def test_weight_decay_exemptions_and_counts():
    model = built("test_vit", 64, {})
    student = all_stages(model, 64)
    assert student.no_weight_decay() == {f"model.{name}" for name in model.no_weight_decay()}
    assert student.no_weight_decay() >= {"model.pos_embed", "model.cls_token"}
    assert Student(built("test_resnet", 64, {}), 5, 64, []).no_weight_decay() == set()
    assert parameters(student.model) + parameters(student.projectors) == parameters(student)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_whole_compiles_into_one_graph(name):
    student = all_stages(built(name, 64, {}), 64).eval()
    x = torch.randn(2, 3, 64, 64)
    found, expected = torch.compile(student, backend="eager", fullgraph=True)(x), student(x)
    torch.testing.assert_close(found[:2], expected[:2])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "coat_lite_tiny", "levit_128s"])
def test_embedding_and_features_come_with_the_same_logits(name):
    model, x = built(name, 64, {}), torch.randn(2, 3, 64, 64)
    student = Student(model, 5, 64, [1, 3], needs={STUDENT_EMBEDDING, STUDENT_FEATURES}).eval()
    output = student(x)
    final, features = model.forward_intermediates(x)
    assert torch.equal(output.logits, model(x)) and not output.stage_logits and not student.projectors
    assert torch.equal(output.embedding, pooled_embedding(model, final)) and output.embedding.shape[0] == 2
    assert list(output.features) == [1, 3]
    for index, (stage, feature) in zip(student.indices, output.features.items(), strict=True):
        assert torch.equal(feature, features[index]) and tuple(feature.shape[1:]) == student.feature_shapes[stage]
    only = Student(model, 5, 64, [1, 3], needs={STUDENT_EMBEDDING}).eval()
    assert only.stages == [] and torch.equal(only(x).embedding, output.embedding)
