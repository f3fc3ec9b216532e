from dataclasses import replace

import pytest

from search.preflight import preflight
from search.rehearsal import estimate, rehearse
from search.settings import resolve
from search.study import Scale, Study
from tests.conftest import TINY
from trainables.build import build_model
from trainables.checkpoint import save_weights
from trainables.errors import InputError

FIELDS = {key: value for key, value in TINY.items() if key not in ("stages", "eps")}


def space(trial):
    stages = [stage for stage in (1, 2, 3, 4) if trial.suggest_categorical(f"stage{stage}", [True, False])]
    return {"stages": stages, "eps": trial.suggest_float("eps", 1.0, 2.0)}


def planned(*sets, **fields):
    study = Study(space=space, scales={"embedded": Scale(**{**FIELDS, **fields})})
    return preflight(study, resolve(study, {"name": "n", "space": "s.py"}, list(sets)))


def refused(*sets, **fields) -> list[str]:
    """What the study is refused with after its settings were taken: by preflight or by the rehearsal."""
    with pytest.raises(InputError) as caught:
        rehearse(*planned(*sets, **fields))
    return caught.value.problems


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"student": "test_resnet", "student_kwargs": {}, "mixup": 0.8, "cutmix": 1.0, "model_ema": True},
        {"aa": "rand-m9-mstd0.5-inc1", "train_interpolation": "bicubic", "reprob": 0.25, "bce_loss": True},
        {"amp": True, "opt": "sgd", "sched": "step", "teacher_recipe": {"opt": "lamb", "mixup": 0.2}},
        {"workers_per_trial": 2, "loader_workers": 2},
    ],
    ids=["plain", "mixed", "augmented", "amp", "two-workers"],
)
def test_what_can_be_trained_passes(fields):
    rehearse(*planned(**fields))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("aa=bogus", "aa='bogus'"),
        ("train_interpolation=foo", "aa=None or train_interpolation='foo' is unknown to timm"),
        ("opt=foo", "opt: 'foo' is no optimizer of timm's"),
        ("teacher_recipe.opt=foo", "teacher_recipe: opt: 'foo' is no optimizer of timm's"),
        ("teacher_recipe.aa=bogus", "teacher_recipe: aa='bogus'"),
        ("teacher_recipe.train_interpolation=foo", "teacher_recipe: aa=None or train_interpolation='foo'"),
        ("opt=adahessian", "a training step fails with opt='adahessian'"),
        ("search.opt=adamw|foo", "opt: 'foo' is no optimizer of timm's"),
        ("search.aa=bogus|rand-m5", "aa='bogus'"),
        ("baselines=[{name: b, distiller: none, stages: [], opt: foo}]", "opt: 'foo'"),
        ("baselines=[{name: b, distiller: none, stages: [], batch_size: 15}]", "batch_size: 15 does not divide"),
        ("crop_scale=0.08,2.0", "recipe.crop_scale: [0.08, 2.0] must be LOW,HIGH with 0 < LOW <= HIGH <= 1"),
        ("crop_ratio=0,1", "recipe.crop_ratio: [0, 1] must be LOW,HIGH with 0 < LOW <= HIGH"),
        ("teacher_recipe.batch_size=33", "teacher_recipe: batch_size=33 does not divide"),
    ],
)
def test_a_recipe_that_would_fail_in_training_fails_before(setting, said):
    (problem,) = refused(setting)
    assert problem.startswith(said)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("batch_size=32", "batch_size: 32 does not divide into equal, even parts over 3 workers"),
        ("teacher_recipe.batch_size=32", "teacher_recipe: batch_size=32 does not divide into equal, even parts over"),
    ],
)
def test_a_batch_must_divide_over_the_workers_of_a_trial(setting, said):
    whole = ("workers_per_trial=3", "batch_size=24", "teacher_recipe.batch_size=24")
    rehearse(*planned(*whole))
    (problem,) = refused(*whole, setting)
    assert problem.startswith(said)


def test_images_must_be_enough_for_the_workers():
    (problem,) = refused("workers_per_trial=8", "batch_size=16", labels_per_class=1)
    assert "10 training image(s) and workers_per_trial=8 needs 16 or more" in problem


def test_a_teacher_that_is_not_fitted_needs_no_recipe_that_works(tmp_path):
    weights = tmp_path / "teacher.safetensors"
    save_weights(build_model("mixer_nano", num_classes=10, img_size=16), weights)
    ready = {"teacher": "mixer_nano", "teacher_kwargs": {}, "teacher_weights": str(weights)}
    rehearse(*planned("teacher_recipe.opt=foo", teacher_source="checkpoint", **ready))


@pytest.fixture(scope="module")
def plan_and_splits():
    return planned()


def cost(plan_and_splits, **changes):
    """An estimate of the plan with changed settings."""
    plan, splits = plan_and_splits
    changed = type(plan)(**{**vars(plan), "settings": plan.settings.model_copy(update=changes)})
    return estimate(changed, splits)


def in_trials(figures):
    """The study's length in full-length trials, but for the teacher's answers: a step's time here and now drops out."""
    store_s = figures["store_s"] / figures["lanes"]
    return tuple((figures[name] - store_s) / figures["trial_s"] for name in ("study_s", "study_min_s"))


def test_an_estimate_grows_with_the_trials_and_shrinks_with_the_lanes(plan_and_splits):
    # ASHA at a factor of 3 over 4 epochs: all train 1 epoch, a third 2 more, a ninth the last
    share = (1 + 2 / 3 + 1 / 9) / 4
    for trials, lanes in ((4, 1), (16, 1), (16, 4)):
        figures = cost(plan_and_splits, trials=trials, concurrency=lanes, grace_epochs=1, finalists=0)
        assert figures["lanes"] == lanes
        assert in_trials(figures) == pytest.approx(((trials + 2) / lanes, (trials * share + 2) / lanes))
    assert cost(plan_and_splits, concurrency=None)["lanes"] == 1


def test_without_a_scheduler_every_trial_is_counted_whole(plan_and_splits):
    whole, least = in_trials(cost(plan_and_splits, trials=6, concurrency=2, scheduler="none", finalists=0))
    assert whole == least == pytest.approx((6 + 2) / 2)


def test_a_longer_grace_leaves_less_to_save(plan_and_splits):
    shares = [in_trials(cost(plan_and_splits, grace_epochs=grace, trials=100, finalists=0))[1] for grace in (1, 2, 4)]
    assert shares[0] < shares[1] < shares[2] == pytest.approx(102)


def test_the_teachers_answers_are_counted_once_for_the_search_and_once_for_each_seed(plan_and_splits):
    plan, splits = plan_and_splits
    batch = plan.base.batch_size
    answers = plan.train_images // batch * batch * plan.base.epochs
    for finalists, streams in ((0, 1), (2, 4)):
        figures = cost(plan_and_splits, trials=5, finalists=finalists, seeds=3)
        assert figures["store_mb"] == pytest.approx(answers * streams * 10 * 2 / 1e6)
        assert figures["store_s"] > 0
    base = {"teacher_store": "topk:3+views:2", "teacher_store_dtype": "float32"}
    changed = replace(plan, base=plan.base.model_copy(update=base))
    figures = cost((changed, splits), finalists=0)
    assert figures["store_mb"] == pytest.approx(answers / plan.base.epochs * 2 * (3 * 4 + 3 * 2 + 4) / 1e6)
    off = replace(plan, base=plan.base.model_copy(update={"teacher_store": "off"}))
    assert cost((off, splits), finalists=0)["store_mb"] == 0.0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("teacher_store=best", "teacher_store: 'best' must be off, full, topk:N, views:V or topk:N+views:V"),
        ("teacher_store=topk:0", "teacher_store: 'topk:0' must be off"),
        ("teacher_store=topk:10", "teacher_store: topk:10 keeps all of 10 classes; give fewer, or full"),
        (
            "teacher_store_at=nowhere://x",
            "teacher_store_at: nowhere://x cannot be used (ValueError: Protocol not known",
        ),
    ],
)
def test_a_store_that_cannot_be_is_refused_before_training(setting, said):
    with pytest.raises(InputError) as caught:
        planned(setting)
    assert caught.value.problems[0].startswith(said)


def test_searched_augmentation_is_said_to_key_the_answers_apart():
    def widely(trial):
        return {
            **space(trial),
            "mixup": trial.suggest_float("mixup", 0.0, 1.0),
            "lr": trial.suggest_float("lr", 1e-4, 1),
        }

    study = Study(space=widely, scales={"embedded": Scale(**FIELDS)})
    plan, _ = preflight(study, resolve(study, {"name": "n", "space": "s.py"}, []))
    assert [note for note in plan.notes if "teacher_store" in note] == [
        "teacher_store: the teacher's answers differ with mixup, which the space searches: only trials that have the "
        "same share them (--set teacher_store=off keeps none)"
    ]


def test_a_trials_time_is_made_of_its_steps(plan_and_splits):
    figures = cost(plan_and_splits)
    plan, _ = plan_and_splits
    assert figures["steps_per_epoch"] == plan.train_images // plan.base.batch_size == 5
    training = figures["step_s"] * figures["steps_per_epoch"] * plan.base.epochs
    assert 0 < training < figures["trial_s"], "judging the holdout is counted too"


def test_a_distiller_of_stages_that_the_models_do_not_share_is_refused():
    plan, splits = planned("distiller=fitnet")
    rehearse(plan, splits)
    lonely = replace(plan, available=[], drawn=[plan.base.model_copy(update={"stages": []})], baselines={})
    with pytest.raises(InputError, match="distiller: fitnet compares stages; student and teacher have none alike"):
        rehearse(lonely, splits)
