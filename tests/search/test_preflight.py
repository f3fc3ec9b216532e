import pytest
import safetensors.torch
import timm
from PIL import Image

from search.earlier import EarlierStudy, EarlierTrial
from search.preflight import preflight
from search.recipes import RECIPES, family_recipe
from search.settings import resolve
from search.space_file import load_space
from search.students import StudentFacts, Students
from search.study import Scale, Study
from tests.conftest import TINY
from trainables import weights
from trainables.errors import InputError

FIELDS = {key: value for key, value in TINY.items() if key not in ("stages", "eps", "lr", "batch_size", "hflip")}


def space(trial):
    stages = [stage for stage in (1, 2, 3, 4) if trial.suggest_categorical(f"stage{stage}", [True, False])]
    return {"stages": stages, "eps": trial.suggest_float("eps", 1.0, 2.0)}


def planned(*sets, function=space, guesses=(), baselines=("scratch", "kd"), earlier=(), kept=(), **fields):
    scales = {"embedded": Scale(**{**FIELDS, **fields})}
    study = Study(space=function, scales=scales, first_guesses=list(guesses), baselines=list(baselines))
    settings = resolve(study, {"name": "n", "space": "s.py"}, list(sets))
    return preflight(study, settings, earlier=list(earlier), kept=list(kept))[0]


def refused(*sets, **fields) -> list[str]:
    with pytest.raises(InputError) as caught:
        planned(*sets, **fields)
    return caught.value.problems


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A hub that does not answer and an empty cache."""
    monkeypatch.setattr(weights.hub, "ENDPOINT", "http://localhost:9")
    monkeypatch.setattr(weights.hub, "HF_HUB_CACHE", str(tmp_path))


def test_the_plan_knows_the_data_and_the_models():
    plan = planned()
    assert (len(plan.classes), plan.train_images, plan.holdout_images) == (10, 80, 287)
    assert plan.available == [1, 2, 3, 4] and plan.notes == []
    assert plan.base.model_dump(include=set(FIELDS)) == {key: FIELDS[key] for key in FIELDS}
    assert plan.trial_count() == plan.settings.trials + 2 + plan.final_count == 16 + 2 + (3 + 2) * 3
    assert plan.data_fingerprint != planned(holdout=0.3).data_fingerprint


def test_data_without_a_test_split_have_no_final(tmp_path):
    for name in ("cat/0", "cat/1", "dog/0", "dog/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    few = {"data": str(tmp_path), "holdout": 0.5, "recipe": {"batch_size": 2}}
    assert refused(**few) == [
        f"finalists: they are judged on a test split, and data={str(tmp_path)!r} has none and classes too small to "
        "spare one; give a test split, or --set finalists=0"
    ]
    assert planned("finalists=0", **few).test_images == 0


@pytest.mark.parametrize(
    ("student", "family", "opt"),
    [("test_resnet", "cnn", "sgd"), ("mixer_nano", "token", "adamw"), ("vit_small_patch16_224", "token", "adamw")],
)
def test_the_students_recipe_is_its_familys(student, family, opt):
    kwargs = FIELDS["student_kwargs"] if "vit" in student else {}
    plan = planned(student=student, student_kwargs=kwargs, full_epochs=40)
    assert plan.family == family
    own = {key: value for key, value in RECIPES["embedded"][family].items() if key not in ("epochs", "warmup_epochs")}
    assert own["opt"] == opt
    assert plan.recipe == {**own, "warmup_epochs": 1}, "the warm-up of 40 epochs, shortened to 4 epochs"
    assert plan.base.model_dump(include=set(own)) == own and plan.base.epochs == FIELDS["epochs"]
    assert plan.students.of({}).full_length == {
        "epochs": 40,
        "warmup_epochs": RECIPES["embedded"][family]["warmup_epochs"],
    }


def test_a_named_family_and_named_recipe_fields_are_above_the_familys():
    plan = planned("family=cnn", "lr=0.123")
    assert plan.family == "cnn"
    assert (plan.recipe["opt"], plan.recipe["lr"], plan.base.lr) == ("sgd", 0.123, 0.123)


def test_the_teachers_recipe_is_its_own_familys_with_its_own_changes():
    plan = planned("lr=0.123", student="test_resnet", student_kwargs={}, teacher_recipe={"epochs": 12, "hflip": 0.25})
    token = RECIPES["embedded"]["token"]
    assert plan.recipe["opt"] == "sgd" and plan.teacher_recipe["opt"] == "adamw"
    assert (plan.teacher_recipe["lr"], plan.teacher_recipe["epochs"]) == (token["lr"], 12)
    assert plan.teacher_recipe["hflip"] == 0.25


@pytest.mark.parametrize(
    ("recipes", "family", "epochs", "full_epochs", "warmup", "decay"),
    [
        ("imagenet", "cnn", 10, None, 1, 3),  # a tenth of 100
        ("imagenet", "cnn", 50, None, 2, 15),
        ("imagenet", "cnn", 10, 50, 1, 6),  # a fifth of what the user calls full
        ("imagenet", "cnn", 1, None, 1, 1),  # never nothing
        ("imagenet", "cnn", 100, None, 3, 30),
        ("imagenet", "cnn", 900, None, 3, 30),  # longer is no reason for more
        ("cifar100", "token", 60, None, 4, None),
    ],
)
def test_warm_up_and_decay_are_shortened_with_the_trial(recipes, family, epochs, full_epochs, warmup, decay):
    recipe, full_length = family_recipe(recipes, family, epochs, full_epochs)
    whole = RECIPES[recipes][family]
    assert recipe["warmup_epochs"] == warmup and recipe.get("decay_epochs") == decay
    expected = {part: whole[part] for part in ("warmup_epochs", "decay_epochs") if part in whole}
    assert full_length == {**expected, "epochs": full_epochs or whole["epochs"]}
    untouched = set(whole) - {"epochs", "warmup_epochs", "decay_epochs"}
    assert "epochs" not in recipe and all(recipe[key] == whole[key] for key in untouched)


def test_a_teacher_without_pretrained_weights_is_fitted_from_scratch():
    plan = planned(teacher="mixer_nano", teacher_kwargs={}, teacher_fit_from="auto")
    assert plan.settings.teacher_fit_from == plan.base.teacher_fit_from == "scratch"
    assert plan.notes == []


def test_a_teacher_whose_pretrained_weights_are_out_of_reach_is_fitted_from_scratch_and_said_so(no_network):
    plan = planned(teacher="test_resnet", teacher_kwargs={}, teacher_fit_from="auto")
    assert plan.base.teacher_fit_from == "scratch"
    assert plan.notes == ["no pretrained weights of test_resnet at hand: it is fitted from scratch"]


def test_a_teacher_whose_pretrained_weights_are_at_hand_starts_from_them(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), path)
    monkeypatch.setattr(timm.models._registry._model_pretrained_cfgs["test_resnet.r160_in1k"], "file", str(path))
    plan = planned(teacher="test_resnet", teacher_kwargs={}, teacher_fit_from="auto")
    assert plan.base.teacher_fit_from == "pretrained" and plan.notes == []


def test_a_teacher_that_must_start_from_weights_out_of_reach_is_refused(no_network):
    (problem,) = refused(teacher="test_resnet", teacher_kwargs={}, teacher_fit_from="pretrained")
    assert problem.startswith("teacher=test_resnet: its pretrained weights cannot be had")


def test_a_pretrained_teacher_of_other_classes_is_refused_with_the_fix():
    (problem,) = refused(teacher="resnet18", teacher_kwargs={}, teacher_source="pretrained")
    assert "timm's weights of resnet18 know 1000 classes, the data have 10" in problem
    assert "--set teacher_source=fit" in problem
    assert "--set teacher_source=checkpoint teacher_weights=PATH" in problem


def test_stages_that_the_student_lacks_are_cut_and_noted():
    plan = planned(student="levit_128s", student_kwargs={}, img_size=64)
    assert plan.available == plan.settings.stages == plan.base.stages == [1, 2, 3]
    assert plan.notes == ["levit_128s has stages 1, 2, 3 only; the searched set is cut to them"]
    assert plan.compose({"stages": [1, 4], "eps": [1.1, 1.4, 1.0]})["stages"] == [1]
    assert plan.compose({"stages": [1, 4], "eps": [1.1, 1.4, 1.0]})["eps"] == [1.1, 1.0]


def test_a_student_without_any_stage_is_noted(tmp_path, monkeypatch):
    (tmp_path / "stageless.py").write_text(
        "import torch.nn as nn\n\n"
        "def make(num_classes, img_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * img_size**2, 8), nn.Linear(8, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plan = planned(student="stageless:make", student_kwargs={})
    assert plan.available == plan.settings.stages == plan.compose({"stages": [1, 4]})["stages"] == []
    (note,) = plan.notes
    assert note.startswith("stageless:make has no stages, as none of its modules gives a feature map;")


def test_stages_that_somebody_asked_for_are_not_cut_but_refused():
    (problem,) = refused("stages=1,4", student="levit_128s", student_kwargs={}, img_size=64)
    assert problem == "stages: 1, 4 names stage 4, but levit_128s has 1, 2, 3"
    deep = {"name": "deep", "distiller": "ofa", "stages": [4]}
    (problem,) = refused(baselines=["scratch", deep], student="levit_128s", student_kwargs={}, img_size=64)
    assert "names stage 4" in problem


def test_every_baseline_has_its_whole_configuration():
    soft = {"name": "soft", "distiller": "kd", "stages": [], "temperature": 4.0, "lr": 0.5}
    baselines = planned("lr=0.01", baselines=["scratch", "kd", soft]).baselines
    assert list(baselines) == ["scratch", "kd", "soft"]
    assert [config.distiller for config in baselines.values()] == ["none", "kd", "kd"]
    assert [config.temperature for config in baselines.values()] == [1.0, 1.0, 4.0]
    assert [config.lr for config in baselines.values()] == [0.01, 0.01, 0.5]


def earlier_study(*params):
    """An earlier study whose trials had these parameters, the best one first."""
    values = range(len(params), 0, -1)
    trials = [
        EarlierTrial(str(value), "complete", given, {"val/top1": float(value)}, {}, lambda metric: {})
        for value, given in zip(values, params, strict=True)
    ]
    return EarlierStudy("before", {"val/top1": True}, {}, trials)


def test_earlier_studies_best_comes_before_the_spaces_guesses_and_each_once():
    guess = {"stage1": True, "eps": 1.5}
    earlier = earlier_study({"eps": 1.1, "lr": 1e-3}, {"eps": 9.0}, guess)
    plan = planned(guesses=[guess, {"eps": 1.2}], earlier=[earlier])
    assert plan.settings.first_guesses == [{"eps": 1.1}, guess, {"eps": 1.2}]
    assert plan.priors == [] and plan.notes[0].startswith(
        "warm start from before: 2 first guesses; not as observations"
    )


def test_what_had_no_room_is_told_and_tried_when_there_is():
    earlier = earlier_study({"eps": 1.1}, {"eps": 1.2}, {"eps": 1.3})
    plan = planned("trials=2", guesses=[{"eps": 1.4}], earlier=[earlier])
    assert plan.warm == [{"eps": 1.1}, {"eps": 1.2}, {"eps": 1.3}]
    assert plan.notes[1] == "of these 3 guesses 2 can be tried; --resume with more --trials tries the others"
    on = planned("trials=4", "search.eps=1.15..1.5", guesses=[{"eps": 1.4}], kept=plan.warm)
    assert on.settings.first_guesses == [{"eps": 1.2}, {"eps": 1.3}, {"eps": 1.4}] and on.notes == []


def test_what_the_sampler_does_not_model_in_this_space_is_said():
    def one_stage(trial):
        stage = trial.suggest_categorical("stage1", [True, False])
        return {"eps": trial.suggest_float("eps", 1.0, 2.0) if stage else 1.5, "stages": [1] if stage else []}

    assert planned("sampler=tpe", function=one_stage).notes == []
    assert planned("sampler=gp", "scheduler=none", function=one_stage).notes == [
        "sampler gp models the parameters that every trial has; TPE draws those of some trials, each for itself: eps"
    ]
    assert planned("sampler=cmaes", function=space).notes == [
        "sampler cmaes models the numbers that every trial has; TPE draws the rest, each for itself: stage1, stage2, "
        "stage3, stage4 (choices)"
    ]
    assert refused("sampler=cmaes", function=one_stage) == [
        "sampler: 'cmaes' needs a number that every trial has, and this space has none; take tpe"
    ]


def test_too_few_seeds_for_the_final_are_told():
    assert planned("seeds=1").notes == [
        "seeds 1: over training runs no difference from a baseline can be judged; --set seeds=3 or more can"
    ]
    assert planned("seeds=2").notes == [
        "seeds 2: a paired test over two seeds hardly ever shows a difference; --set seeds=3 or more may"
    ]
    assert planned("seeds=3").notes == planned("seeds=1", "finalists=0").notes == []
    assert planned("seeds=1", baselines=[]).notes == planned("seeds=1", "smoke=true").notes == []


def test_searches_for_baselines_that_there_are_not_are_told():
    assert planned("tune_baselines=3", baselines=[]).notes == [
        "tune_baselines 3 tunes nothing, as there are no baselines"
    ]
    assert planned("tune_baselines=3").notes == planned(baselines=[]).notes == []


def test_brute_force_counts_its_points_and_needs_finite_parameters():
    plan = planned("sampler=brute", "trials=50", "scheduler=none", function=grid_of)
    assert plan.grid is None and (plan.trials, plan.points) == (6, 6)
    assert plan.notes == ["the space has 6 points, so there are no more trials, though 50 were asked"]
    assert planned("sampler=brute", "trials=5", function=grid_of).trials == 5
    assert refused("sampler=brute") == [
        "sampler: 'brute' tries every value and eps is continuous (1.0 to 2.0); give it a few "
        "(--set 'search.eps=1.0|2.0'), a step in the space, or take another sampler"
    ]


def test_with_a_schedule_by_rungs_trials_and_baselines_restart_there_and_the_teacher_does_not():
    plan = planned("stopping_schedule=rung", "scheduler=hyperband", "epochs=10", "grace_epochs=2", "reduction_factor=2")
    configs = [plan.base, *plan.baselines.values(), plan.students.compose(plan.settings, {"eps": 1.5, "stages": [1]})]
    assert [config.sched_restarts for config in configs] == [[2, 4, 8]] * 4
    assert "sched_restarts" not in plan.teacher_recipe
    assert planned("scheduler=hyperband").base.sched_restarts == []


def test_what_the_space_may_return_is_tried_before_anything_trains():
    problems = refused(function=lambda trial: {"temperature": trial.suggest_float("t", -1.0, -0.5)})
    assert problems and all(line.startswith("temperature: ") for line in problems)
    assert any("3 workers a trial" in line for line in refused("workers_per_trial=3", "batch_size=32"))


def grid_of(trial):
    return {"eps": trial.suggest_categorical("eps", [1.0, 1.2, 1.4]), "temperature": trial.suggest_int("t", 1, 2) * 1.0}


def test_a_grid_begins_with_the_first_guesses_and_has_them_once():
    plan = planned(
        "sampler=grid", "trials=4", "scheduler=none", function=grid_of, guesses=[{"eps": 1.4, "t": 2}, {"eps": 1.4}]
    )
    assert [point["eps"] for point in plan.grid][:2] == [1.4, 1.4] and len(plan.grid) == 6
    assert plan.trials == 4 and plan.trial_count() == 6 + plan.final_count and plan.notes == []


def test_more_trials_than_a_grid_has_points_are_fine_and_said():
    plan = planned("sampler=grid", "trials=50", "scheduler=none", function=grid_of)
    assert plan.trials == 6 and plan.trial_count() == 8 + plan.final_count
    assert plan.notes == ["the grid has 6 points, so there are no more trials, though 50 were asked"]


def test_a_grid_is_refused_where_a_parameter_is_continuous_and_checked_at_every_point():
    (problem,) = refused("sampler=grid")
    assert problem.startswith("sampler: 'grid' tries every value and eps is continuous (1.0 to 2.0)")
    rarely_bad = refused("sampler=grid", function=lambda trial: {"eps": 400.0 - trial.suggest_int("n", 1, 400)})
    assert rarely_bad == ["eps: 0.0 eps must be above 0"]


def test_only_a_grid_is_enumerated():
    assert planned(function=grid_of).grid is None


COMPARISON = load_space("spaces/distiller_comparison.py")


def compared(*sets, seed=0):
    flags = {"name": "n", "space": "spaces/distiller_comparison.py", "seed": seed}
    return preflight(COMPARISON, resolve(COMPARISON, flags, list(sets)))[0]


@pytest.mark.parametrize("seed", [5, 7, 22])  # whose random draws miss some distillers
def test_every_distiller_is_met_whatever_is_drawn(seed):
    plan = compared(seed=seed)
    assert len(plan.distillers) == len(plan.settings.first_guesses) == 12


@pytest.mark.parametrize("sets", [["distiller=rsd"], ["search.distiller=rsd"]])
def test_one_distiller_is_searched_in_its_own_ranges(sets):
    plan = compared(*sets)
    assert plan.distillers == ["rsd"]
    assert plan.settings.first_guesses == [{"gt_loss_weight": 1.0, "rsd_kappa@rsd": 0.01, "rsd_loss_weight@rsd": 0.1}]
    some = compared("search.distiller=kd|ofa+rsd", "search.temperature=1.0..3.0")
    assert some.distillers == ["kd", "ofa+rsd"]
    assert all(1.0 <= config.temperature <= 3.0 for config in some.drawn)


@pytest.mark.parametrize(
    ("sets", "problems"),
    [
        (["dkd_alpha=2"], ["dkd_alpha: no trial reads it; add --set distiller=dkd, or leave it out"]),
        (["search.rsd_kappa=0.01..0.1"], ["rsd_kappa: no trial reads it; add --set distiller=rsd, or leave it out"]),
        (
            ["distiller=rsd", "temperature=4", "projector=pooled", "stages=1"],
            [f"{name}: no trial reads it; leave it out" for name in ("projector", "stages", "temperature")],
        ),
        (
            ["curriculum_temperature=true", "search.temperature=1..4"],
            ["temperature: no trial reads it; it is learned with curriculum_temperature, so leave one of them out"],
        ),
        (["curriculum_epochs=3"], ["curriculum_epochs: no trial reads it; leave it out"]),
        (
            ["distiller=fitnet", "stages=none"],
            ["stages: distiller fitnet compares stages and no trial has one; choose some"],
        ),
        (
            ["gt_loss_weight=0", "kd_loss_weight=0"],
            ["gt_loss_weight, kd_loss_weight must not all be 0 where no stage is chosen"],
        ),
    ],
)
def test_settings_that_nothing_reads_or_that_teach_nothing(sets, problems):
    assert refused(*sets) == problems


def test_what_is_searched_in_vain_is_told():
    (note,) = planned("distiller=kd").notes
    assert note.startswith("the space searches eps, stages, which no trial reads") and "search.distiller" in note
    assert not planned("distiller=ofa+rsd").notes
    assert not planned("distiller=rsd", "stages=none", function=lambda trial: {"stages": []}).notes


def test_a_baseline_takes_over_a_searched_student_with_its_recipe_and_stages():
    study = Study(space=lambda trial: {}, scales={"embedded": Scale(teacher="t", student="large", stages=[1, 4])})
    settings = resolve(study, {"name": "n", "space": "s.py"}, [])
    students = Students(settings, build=lambda _: None)
    facts = {
        "large": StudentFacts("cnn", {"lr": 0.1, "weight_decay": 0.2}, {}, [1, 2, 3, 4]),
        "small": StudentFacts("token", {"lr": 0.01, "weight_decay": 0.5}, {}, [1, 2]),
    }
    students._look_at = lambda settings: facts[settings.student]
    baseline = {
        "student": "large", "student_kwargs": {}, "lr": 0.3, "weight_decay": 0.2, "stages": [1, 4],
        "eps": [1.0, 2.0, 3.0],
    }  # fmt: skip
    swapped = students.swapped(baseline, {"student": "small", "student_kwargs": {"width": 8}, "lr": 7.0})
    assert swapped == {
        "student": "small", "student_kwargs": {"width": 8}, "stages": [1], "eps": [1.0, 3.0],
        "lr": 0.3,  # tuned
        "weight_decay": 0.5,  # its family's
    }  # fmt: skip
