import os

import pytest

from search.rungs import rungs
from search.settings import Settings, compose, cut_stages, resolve, trial_config
from search.space_file import load_space
from search.study import Scale, Study
from search.values import parse_value
from trainables.errors import InputError

MODELS = {"teacher": "vit_tiny_patch16_224", "student": "resmlp_12_224", "teacher_source": "fit"}


def study(**fields):
    scales = {"embedded": Scale(**{**MODELS, **fields}), "cifar100": Scale(**MODELS, data="torch/cifar100")}
    return Study(space=lambda trial: {}, scales=scales)


def resolved(*sets, flags=None, **fields) -> Settings:
    return resolve(study(**fields), {"name": "n", "space": "s.py", **(flags or {})}, list(sets))


def problems(*sets, flags=None, **fields) -> list[str]:
    with pytest.raises(InputError) as caught:
        resolved(*sets, flags=flags, **fields)
    return caught.value.problems


def test_later_layers_win():
    assert resolved(trials=5).trials == 5
    assert resolved(trials=5, flags={"trials": 6}).trials == 6
    assert resolved("trials=7", trials=5, flags={"trials": 6}).trials == 7


def test_a_scale_is_chosen_by_flag_or_inferred_from_the_data():
    assert resolved().scale == "embedded"
    assert resolved(flags={"scale": "cifar100"}).data == "torch/cifar100"
    assert resolved(flags={"data": "torch/cifar100"}).scale == "cifar100"


def test_smoke_shrinks_the_study_but_a_flag_is_above_it():
    smoke = resolved(flags={"smoke": True}, trials=50, epochs=100)
    assert (smoke.trials, smoke.epochs) == (3, 2)
    assert resolved(flags={"smoke": True, "trials": 4}).trials == 4


@pytest.mark.parametrize(
    ("sets", "rungs_at"),
    [
        (["epochs=36"], [12]),
        (["epochs=20"], [7]),
        (["epochs=1"], []),
        (["epochs=36", "grace_epochs=1"], [1, 3, 9, 27]),
        (["epochs=36", "grace_epochs=null"], [12]),
        (["epochs=27", "scheduler=hyperband"], [1, 3, 9]),
        (["epochs=36", "scheduler=hyperband", "brackets=2"], [4, 12]),
        (["epochs=36", "scheduler=hyperband"], [1, 3, 9, 27]),
        (["epochs=36", "scheduler=hyperband", "brackets=1000000000"], [1, 3, 9, 27]),
    ],
)
def test_trials_are_first_compared_after_a_third_of_their_epochs_and_in_hyperband_earlier_too(sets, rungs_at):
    assert rungs(resolved(*sets)) == rungs_at


def test_recipe_fields_are_set_like_any_other():
    settings = resolved("lr=5e-4", "recipe.clip_grad=1.0")
    assert settings.recipe == {"lr": 5e-4, "clip_grad": 1.0}
    assert trial_config(settings, settings.recipe, {}).lr == 5e-4


def test_every_error_comes_at_once_with_its_field_and_value():
    found = problems("temperature=-1", "sampler=best", "epochs=no", "recipe.lr=-2", flags={"trials": 0})
    text = "\n".join(found)
    for field in ("temperature: -1", "sampler: 'best'", "epochs: 'no'", "recipe.lr: -2", "trials: 0"):
        assert field in text
    assert "'tpe'" in text and len(found) == 5
    assert all("\n" not in line for line in found)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("tempratur=1", "did you mean temperature"),
        ("gt_loss_weight=-0.5", "gt_loss_weight: -0.5"),
        ("stages=[1,7]", "among 1, 2, 3, 4"),
        ("eps=[1.0,1.1]", "eps has 2 values for stages [1, 2, 3, 4]: give one, or 5"),
        ("eps=0", "eps must be above 0"),
        ("nonsense", "is not FIELD=VALUE"),
        ("teacher_weights=x.pt", "teacher_source='checkpoint'"),
        ("baselines=[fancy]", "'fancy' is none of scratch, kd"),
        ("name=a b", "name: 'a b' must be of letters, digits, '.', '_' and '-', the first one a letter or digit"),
        ("objectives=", "objectives: none is given; name a metric, or several: --set objectives=top1,parameters"),
        ("objectives=[]", "objectives: none is given; name a metric"),
        ("student=", "student: no value is given, it must be a valid string"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(item, said):
    assert said in "\n".join(problems(item))


@pytest.mark.parametrize("name", ["kd-1", "kd-seed2", "soft-as-0", "kd-as-kd-1"])
def test_a_baseline_is_not_named_as_a_run_of_another(name):
    (problem,) = problems(f"baselines=[kd, {{name: {name}, distiller: kd}}]")
    assert problem.startswith(f"baselines: '{name}' may be the name of another baseline's run")
    assert resolved(f"baselines=[kd, {{name: {name.replace('-', '_')}, distiller: kd}}]").baselines


@pytest.mark.parametrize("name", ["kd-t4", "kd1", "kd-4.0", "kd-seeds", "as-is", "kd-seed1x"])
def test_other_names_with_figures_and_dashes_are_fine(name):
    assert resolved(f"baselines=[kd, {{name: {name}, distiller: kd}}]").baselines


def test_a_missing_field_is_named():
    with pytest.raises(InputError, match="student: it is missing"):
        resolve(Study(space=lambda trial: {}, scales={"embedded": Scale(teacher="a")}), {"name": "n", "space": "s"}, [])


def test_a_set_field_holds_whatever_the_space_says():
    settings = resolved("temperature=2.0")
    assert compose(settings, {}, [1, 2, 3, 4], {"temperature": 5.0}).temperature == 2.0


def test_a_space_may_return_only_what_a_trial_has():
    with pytest.raises(InputError, match=r"'temprature'.*did you mean temperature"):
        trial_config(resolved(), {}, {"temprature": 1.0})


def test_searched_stages_are_cut_with_their_eps():
    fields = {"stages": [1, 2, 4], "eps": [1.1, 1.2, 1.4, 1.0]}
    assert cut_stages(fields, [1, 2, 3]) == {"stages": [1, 2], "eps": [1.1, 1.2, 1.0]}
    assert cut_stages({"stages": [4], "eps": 1.5}, [1, 2, 3]) == {"stages": [], "eps": 1.5}
    assert cut_stages(fields, [1, 2, 3, 4]) == fields


def test_values_read_as_people_write_them():
    assert [parse_value(text) for text in ("5e-4", "3", "true", "a", "[1, 2]", "null")] == [
        5e-4,
        3,
        True,
        "a",
        [1, 2],
        None,
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def space(trial:\n", "syntax error in .*, line 1"),
        ("x = 1\n", "defines no STUDY"),
        ("raise KeyError('lost')\n", "fails: KeyError: 'lost'"),
    ],
)
def test_a_broken_space_file_is_told(tmp_path, text, said):
    path = tmp_path / "space.py"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        load_space(str(path))


def test_a_missing_space_and_a_url_are_told():
    with pytest.raises(InputError, match=r"no file 'nowhere.py'.*vit_to_mlp.py"):
        load_space("nowhere.py")
    with pytest.raises(InputError, match="is a URL"):
        load_space("https://somewhere/space.py")
    with pytest.raises(InputError) as caught:
        load_space("nowhere.py")
    assert "parts.py" not in str(caught.value), "no space"


PAIRS = {
    "a-b": {"student": "mixer_b16_224", "lr": 0.1, "recipe": {"mixup": 0.5}},
    "a-c": {"student": "resnet18", "epochs": 7},
}


def test_a_space_edited_within_a_second_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    path = tmp_path / "space.py"
    for trials in (1, 2):  # of equal size, and of the same second
        path.write_text(
            f"from search.study import Study\nSTUDY = Study(space=dict, scales={{}}, fields={{'trials': {trials}}})\n"
        )
        os.utime(path, (0, 0))
        assert load_space(str(path)).fields["trials"] == trials
    assert list(tmp_path.iterdir()) == [path]


def paired(*sets, scale="embedded", **fields):
    """The settings of a study of two pairs at one scale, one at another, and none at the third."""
    scales = {
        "embedded": Scale(pairs=PAIRS, **{**MODELS, "recipe": {"amp": True}, **fields}),
        "cifar100": Scale(pairs={"a-d": {"student": "resnet34"}}, **MODELS),
        "imagenet": Scale(**MODELS),
    }
    return resolve(Study(space=lambda trial: {}, scales=scales), {"name": "n", "space": "s", "scale": scale}, sets)


def test_the_first_pair_is_the_default_and_lies_above_its_scale():
    settings = paired()
    assert (settings.pair, settings.student, settings.teacher) == ("a-b", "mixer_b16_224", MODELS["teacher"])
    assert settings.recipe == {"amp": True, "mixup": 0.5, "lr": 0.1}


def test_a_pair_is_chosen_by_name_and_what_is_set_lies_above_it():
    assert (paired("pair=a-c").student, paired("pair=a-c").epochs) == ("resnet18", 7)
    settings = paired("pair=a-c", "student=resnet50", "epochs=8")
    assert (settings.pair, settings.student, settings.epochs) == ("a-c", "resnet50", 8)
    assert paired(pair="a-c").student == "resnet18", "a scale may name another default"


@pytest.mark.parametrize(
    ("name", "scale", "said"),
    [
        ("a-bb", "embedded", "pair: there is no 'a-bb'; scale embedded has a-b, a-c; did you mean a-b"),
        ("a-d", "embedded", "pair: there is no 'a-d'; scale embedded has a-b, a-c; it belongs to --scale cifar100"),
        ("a-d", "imagenet", "scale imagenet has only one, without a name: leave it out; it belongs to --scale cifar"),
        ("7", "cifar100", "pair: there is no '7'; scale cifar100 has a-d"),
        ("[a-b]", "embedded", "pair: there is no '['a-b']'; scale embedded has a-b, a-c"),
    ],
)
def test_an_unknown_pair_is_told_with_those_there_are(name, scale, said):
    with pytest.raises(InputError) as caught:
        paired(f"pair={name}", "epochs=0", scale=scale)
    assert [said in problem for problem in caught.value.problems] == [True, False], "other problems come with it"


def test_a_scale_without_pairs_has_none():
    assert paired(scale="imagenet").pair is None


def test_a_pair_that_is_no_dict_is_told_with_its_file(tmp_path):
    path = tmp_path / "space.py"
    path.write_text("from search.study import Scale\nScale(pairs={'a-b': 'resnet18'})\n")
    with pytest.raises(InputError, match=r"space.py fails: TypeError: pair 'a-b' is a str; give its fields"):
        load_space(str(path))


@pytest.mark.parametrize(("written", "objective"), [("top1", "max:top1"), ("nll", "min:loss"), ("max:ece", "max:ece")])
def test_a_trial_knows_what_ranks_it(written, objective):
    resolved = resolve(study(objectives=[written, "latency"]), {"name": "n", "space": "s"}, [])
    assert trial_config(resolved, {}, {}).objective == objective


@pytest.mark.parametrize("name", ["recipe", "teacher_recipe", "search"])
def test_what_has_parts_takes_no_single_value(name):
    with pytest.raises(InputError) as error:
        resolve(study(), {"name": "n", "space": "s"}, [f"{name}=3", "lr=0.1"])
    assert error.value.problems == [f"{name}: 3 is no mapping; give its parts by --set {name}.NAME=VALUE"]


@pytest.mark.parametrize(
    ("sets", "lanes", "gpus"),
    [
        (["concurrency=6"], 6, 0),
        (["concurrency=6", "pack=4"], 2, 0),
        (["concurrency=6", "pack=4", "gpus_per_trial=0.25"], 2, 1),
        (["pack=4", "gpus_per_trial=0.1"], 1, 0.4),
    ],
)
def test_packed_trials_share_a_lane_and_what_it_holds(sets, lanes, gpus):
    settings = resolved(*sets)
    assert (settings.lanes, settings.gpus_per_lane) == (lanes, gpus)


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        (["pack=0"], "pack: 0 must be greater than or equal to 1"),
        (["pack=2", "workers_per_trial=2"], "pack: packed trials share one process, but workers_per_trial is 2"),
        (["pack=3", "gpus_per_trial=1"], "3 trials of 1 GPUs each do not fit on one; give --gpus-per-trial 0.333"),
    ],
)
def test_trials_that_cannot_be_packed_are_refused(sets, problem):
    assert any(problem in line for line in problems(*sets))


def test_a_disk_budget_has_a_unit():
    assert resolved("disk_budget=50GB").disk_budget == 50 * 10**9
    assert resolved("disk_budget=1.5GiB").disk_budget == 3 * 2**29
    assert resolved("disk_budget=null").disk_budget is None
    for given in ("lots", "0", "-1", "50XB"):
        (line,) = problems(f"disk_budget={given}")
        assert line.endswith("is no size; give one as 50GB or 500MiB") and line.startswith("disk_budget: "), line


def test_a_secret_in_a_stores_url_is_refused_and_a_folders_at_sign_is_none():
    assert resolved("teacher_store_at=/data/me@work", flags={"storage": "runs@home"}).storage == "runs@home"
    (line,) = problems("teacher_store_at=sftp://me:s3cret@host/f")
    assert line.startswith("teacher_store_at: sftp://me:***@host/f has a secret in it")
    (line,) = problems(flags={"storage": "s3://me:s3cret@bucket/f"})
    assert line.startswith("storage: s3://me:***@bucket/f has a secret in it")
