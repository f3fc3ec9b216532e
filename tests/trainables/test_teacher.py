import pytest
import timm
import torch

from tests.conftest import TINY
from trainables.build import normalization
from trainables.config import Recipe, TrialConfig
from trainables.teacher import Teacher, clearly_beats_chance, fingerprint, fit_config

OWN = {"mean": (0.2, 0.5, 0.7), "std": (0.1, 0.3, 0.5)}  # the teacher's
MEAN, STD = (0.6, 0.4, 0.1), (0.25, 0.2, 0.4)  # the student's
RECIPE = {"epochs": 3, "batch_size": 64, "lr": 1e-3}


def model(**changes):
    torch.manual_seed(0)
    kwargs = {**TINY["teacher_kwargs"], "num_classes": 5, "img_size": 16, "pretrained_cfg_overlay": OWN, **changes}
    return timm.create_model(TINY["teacher"], **kwargs)


def normalised(images, mean, std):
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (mean, std))
    return (images - mean) / std


def test_the_teacher_sees_the_same_image_in_its_own_normalisation():
    bare = model().eval()
    assert normalization(bare) == (OWN["mean"], OWN["std"])
    images = torch.rand(4, 3, 16, 16)
    seen, expected = normalised(images, MEAN, STD), bare(normalised(images, **OWN))
    torch.testing.assert_close(Teacher(bare, MEAN, STD)(seen).logits, expected)
    for mean, std in ((STD, MEAN), (OWN["mean"], STD), (MEAN, OWN["std"]), (OWN["mean"], OWN["std"])):
        assert (Teacher(bare, mean, std)(seen).logits - expected).abs().max() > 1e-2, "the test would not notice"


def test_a_teacher_with_the_students_normalisation_is_the_model_itself():
    bare, images = model().eval(), torch.randn(4, 3, 16, 16)
    assert torch.equal(Teacher(bare, OWN["mean"], OWN["std"])(images).logits, bare(images))


def test_the_teacher_stays_in_evaluation_mode():
    bare, images = model(drop_rate=0.5, drop_path_rate=0.5).train(), torch.randn(4, 3, 16, 16)
    teacher = Teacher(bare, MEAN, STD)
    first = teacher(images).logits
    assert teacher.train() is teacher
    torch.nn.ModuleList([teacher]).train()  # as a part of something that trains
    assert not any(module.training for module in teacher.modules())
    assert torch.equal(teacher(images).logits, first)


def test_no_gradient_flows_through_the_teacher():
    teacher, images = Teacher(model(), MEAN, STD), torch.randn(2, 3, 16, 16, requires_grad=True)
    assert not teacher(images).logits.requires_grad
    assert not any(weight.requires_grad for weight in teacher.parameters())


@pytest.mark.parametrize(
    ("images", "classes", "least"),
    [
        (100, 10, 19.0),  # three standard errors of 3 points above 10
        (10_000, 10, 15.0),  # many images: half again above chance
        (400, 2, 75.0),  # two classes: half again is what counts
        (36, 2, 75.0),
        (25, 2, 80.0),  # few images: the error
        (90_000, 100, 1.5),
    ],
)
def test_a_teacher_must_be_above_the_edge_not_at_it(images, classes, least):
    assert not clearly_beats_chance(least, images, classes)
    assert not clearly_beats_chance(100 / classes, images, classes)
    assert not clearly_beats_chance(0.0, images, classes)
    assert clearly_beats_chance(least + 0.01, images, classes)


def test_two_images_prove_nothing():
    assert not clearly_beats_chance(100.0, images=2, classes=2)


def stamp(recipe=RECIPE, data="d1", **changes):
    return fingerprint(TrialConfig(**(TINY | changes)), recipe, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": "vit_small_patch16_224"},
        {"teacher_kwargs": {**TINY["teacher_kwargs"], "depth": 5}},
        {"teacher_fit_from": "pretrained"},
        {"img_size": 32},
        {"seed": 1},
        {"data": "d2"},
        {"recipe": {**RECIPE, "lr": 2e-3}},
        {"teacher_source": "pretrained"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_fitted_teacher_is_another_where_what_made_it_is(changes):
    assert stamp(**changes) != stamp()


@pytest.mark.parametrize(
    "changes",
    [
        {"student": "resmlp_12_224", "student_kwargs": {}},
        {"taps": "even", "projector": "conv"},
        {"stages": [2], "eps": 1.7, "temperature": 3.0, "distiller": "kd"},
        {"gt_loss_weight": 0.2, "kd_loss_weight": 0.3, "ofa_loss_weight": 0.4},
        {"epochs": 9, "lr": 0.1, "batch_size": 32, "mixup": 0.8, "opt": "sgd", "model_ema": True},
        {"loader_workers": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_studies_that_differ_in_the_student_share_a_teacher(changes):
    assert stamp(**changes) == stamp()


def test_recipe_and_seed_do_not_matter_to_a_teacher_that_is_not_fitted():
    given = {"teacher_source": "pretrained"}
    same = stamp(**given)
    assert stamp(**given, seed=1, recipe={**RECIPE, "lr": 1.0}, teacher_fit_from="auto") == same
    assert stamp(**given, data="d2") != same and stamp(**given, img_size=32) != same


def test_a_checkpoint_is_known_by_its_content(tmp_path):
    def of(name, content):
        (tmp_path / name).write_bytes(content)
        return stamp(teacher_source="checkpoint", teacher_weights=str(tmp_path / name))

    first = of("a.pt", b"weights")
    assert of("moved.pt", b"weights") == first
    assert of("a.pt", b"other weights") != first


def test_the_fitting_trial_is_the_teacher_alone_on_all_labels():
    config = TrialConfig(**TINY | {"labels_per_class": 8, "gt_loss_weight": 0.1, "student_source": "pretrained"})
    fitting = fit_config(config, RECIPE)
    assert (fitting.student, fitting.student_kwargs) == (TINY["teacher"], TINY["teacher_kwargs"])
    assert fitting.student_source == "scratch" and fitting.student_weights is None
    assert fitting.labels_per_class is None
    assert (fitting.distiller, fitting.stages, fitting.gt_loss_weight) == ("none", [], 1.0)
    for kept in ("data", "img_size", "holdout", "max_images", "data_seed", "seed"):
        assert getattr(fitting, kept) == getattr(config, kept)
    assert fit_config(config.model_copy(update={"teacher_fit_from": "pretrained"}), RECIPE).student_source == (
        "pretrained"
    )


def test_nothing_of_the_students_recipe_reaches_the_teacher():
    students = {
        "epochs": 7, "batch_size": 10, "opt": "sgd", "lr": 0.7, "momentum": 0.1, "weight_decay": 0.3,
        "projector_lr_scale": 0.2, "projector_weight_decay_scale": 0.2, "sched": "step", "min_lr": 0.1,
        "warmup_lr": 0.01, "warmup_epochs": 2, "decay_epochs": 2, "decay_rate": 0.5, "sched_restarts": [1],
        "clip_grad": 0.1, "smoothing": 0.3, "mixup": 0.5, "cutmix": 0.5, "mixup_prob": 0.1, "mixup_switch_prob": 0.1,
        "crop_scale": [0.9, 1.0], "crop_ratio": [1.0, 1.0], "hflip": 0.1, "color_jitter": 0.1,
        "aa": "rand-m5", "reprob": 0.3, "train_interpolation": "bicubic", "bce_loss": True, "drop": 0.4,
        "drop_path": 0.4, "model_ema": True, "model_ema_decay": 0.5, "amp": True, "amp_dtype": "float16",
        "channels_last": True, "torchcompile": True, "opt_fused": True, "cuda_graph": True,
    }  # fmt: skip
    assert students.keys() == set(Recipe.model_fields), "a new field of the recipe belongs in this test"
    fitting = fit_config(TrialConfig(**TINY | students), RECIPE)
    assert fitting.model_dump(include=set(Recipe.model_fields)) == Recipe(**RECIPE).model_dump()


def test_an_edited_module_makes_another_teacher(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own_teacher.py"
    path.write_text("def make(num_classes): ...\n")
    config = TrialConfig(**(TINY | {"teacher": "own_teacher:make", "teacher_kwargs": {}}))
    before = fingerprint(config, RECIPE, "data")
    assert fingerprint(config, RECIPE, "data") == before
    path.write_text("def make(num_classes, width=3): ...\n")
    assert fingerprint(config, RECIPE, "data") != before
