import optuna
import pytest

from search.settings import compose, pinned_fields, resolve
from search.space import SearchSpace
from search.study import Scale, Study
from trainables.errors import InputError

FIELDS = {"teacher": "vit_tiny_patch16_224", "student": "resmlp_12_224", "teacher_source": "fit"}


def space(trial):
    stages = [stage for stage in (1, 2) if trial.suggest_categorical(f"stage{stage}", [True, False])]
    eps = trial.suggest_float("eps", 0.8, 2.5)
    if stages:
        eps = [trial.suggest_float(f"eps_stage{stage}", 0.8, 2.5) for stage in stages] + [eps]
    return {"stages": stages, "eps": eps, "temperature": trial.suggest_float("temperature", 0.5, 8.0, log=True)}


def checked(function=space, overrides=None, guesses=(), sets=()):
    study = Study(space=function, scales={"embedded": Scale(**FIELDS)}, first_guesses=list(guesses))
    settings = resolve(study, {"name": "n", "space": "s.py"}, sets)
    wrapped = SearchSpace(function, overrides or {}, pinned_fields(settings, {}))

    def composed(fields):
        return compose(settings, {}, [1, 2, 3, 4], fields)

    wrapped.check(0, composed)
    for guess in guesses:
        wrapped.guess(guess, composed)
    return wrapped


def test_a_parameter_exists_only_where_its_branch_is_taken():
    for params, fields in checked().samples(30, seed=1):
        assert {name for name in params if name.startswith("eps_stage")} == {
            f"eps_stage{stage}" for stage in fields["stages"]
        }


def test_the_same_seed_draws_the_same():
    assert checked().samples(5, seed=3) == checked().samples(5, seed=3)


def test_overrides_change_ranges_fix_values_and_add_recipe_fields():
    wrapped = checked(overrides={"eps": "1.0..1.1", "temperature": 2.0, "lr": "1e-4..1e-2", "stage1": True})
    for params, fields in wrapped.samples(20, seed=0):
        eps = fields["eps"]
        assert 1.0 <= (eps[-1] if isinstance(eps, list) else eps) <= 1.1
        assert fields["temperature"] == 2.0 and "temperature" not in params
        assert 1e-4 <= fields["lr"] <= 1e-2
        assert 1 in fields["stages"]


def test_an_added_range_over_decades_is_searched_on_a_log_scale():
    study = optuna.create_study()
    trial = study.ask()
    SearchSpace(space, {"lr": "1e-4..1e-2", "momentum": "0.8..0.9"}, {})(trial)
    assert trial.distributions["lr"].log and not trial.distributions["momentum"].log


def test_a_whole_number_is_searched_as_one():
    wrapped = checked(overrides={"warmup_epochs": "1..5", "batch_size": "16|32"})
    for _, fields in wrapped.samples(20, seed=0):
        assert isinstance(fields["warmup_epochs"], int) and fields["batch_size"] in (16, 32)


def test_a_pinned_field_is_not_searched():
    for params, fields in checked(sets=["stages=2", "temperature=3.0"]).samples(20, seed=0):
        assert set(params) == {"eps", "eps_stage2"}
        assert fields["stages"] == [2] and len(fields["eps"]) == 2 and fields["temperature"] == 3.0


def test_a_first_guess_yields_to_overrides_and_pinned_fields():
    wrapped = checked(overrides={"eps": "1.0|1.5"}, sets=["temperature=3.0"])
    guess = {"stage1": True, "temperature": 1.0}
    assert wrapped.guess({**guess, "eps": 1.5}, lambda fields: fields) == {"stage1": True, "eps": 1.5}
    assert wrapped.guess({**guess, "eps": 1.2}, lambda fields: fields) == {"stage1": True}


def test_another_studys_parameters_are_taken_where_they_fit():
    wrapped = checked(overrides={"temperature": "2.0..8.0"})
    others = {"eps": 1.5, "lr": 1e-3, "temperature": 1.0, "stage1": True}
    assert wrapped.matching(others) == {"eps": 1.5, "stage1": True}
    assert wrapped.matching({"eps": 9.0, "stage2": False}) == {"stage2": False}


def branched(trial):
    """Seven points: eps only where there are stages."""
    stages = [1, 2] if trial.suggest_categorical("staged", [True, False]) else []
    eps = trial.suggest_float("eps", 1.0, 1.5, step=0.25) if stages else 1.0
    repeated = trial.suggest_int("warmup_epochs", 1, 2) if stages else 0
    return {"stages": stages, "eps": eps, "warmup_epochs": repeated}


def test_a_grid_has_every_point_of_a_conditional_space_once():
    grid = [params for params, _ in checked(branched).grid(0)]
    staged = [{"staged": True, "eps": eps, "warmup_epochs": n} for eps in (1.0, 1.25, 1.5) for n in (1, 2)]
    assert sorted(map(str, grid)) == sorted(map(str, [*staged, {"staged": False}]))
    assert grid == [params for params, _ in checked(branched).grid(0)]


def test_a_grid_takes_values_from_overrides_and_has_one_point_where_all_is_set():
    values = {"eps": "1.0|1.5", "temperature": "1|2|4", "stage1": False, "stage2": False}
    assert len(checked(overrides=values).grid(0)) == 6
    assert (
        checked(overrides={name: 1.0 for name in ("eps", "temperature")} | {"stage1": False, "stage2": False}).grid(0)[
            0
        ][0]
        == {}
    )


def test_a_grid_of_continuous_parameters_is_refused_naming_each():
    with pytest.raises(InputError) as caught:
        checked(overrides={"temperature": "1|2"}).grid(0)
    assert sorted(problem.split(" is")[0] for problem in caught.value.problems) == [
        f"sampler: 'grid' tries every value and {name}" for name in ("eps", "eps_stage1", "eps_stage2")
    ]
    assert "(--set 'search.eps=0.8|2.5')" in str(caught.value)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda trial: {"lr": trial.suggest_int("n", 1, 10**9) / 1e9}, "n has more than 500 values"),
        (lambda trial: {"lr": sum(trial.suggest_int(n, 1, 40) for n in "abc") / 1e9}, "more than 500 points"),
    ],
)
def test_a_grid_too_large_to_enumerate_is_refused(function, said):
    with pytest.raises(InputError, match=said):
        checked(function).grid(0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"overrides": {"epz": 1.0}}, "search.epz: the space suggests no 'epz'; did you mean eps"),
        ({"overrides": {"eps": "2.0..1.0"}}, "LOW..HIGH"),
        ({"overrides": {"temperature": "-1..1"}}, "temperature"),
        ({"guesses": [{"epsilon": 1.0}]}, "first_guesses: the space suggests no 'epsilon'"),
        ({"guesses": [{"stage1": "yes"}]}, "first_guesses: {'stage1': 'yes'}"),
        ({"overrides": {"stages": 1}}, "stages: 1 must be"),
        ({"overrides": {"batch_size": "15|31"}}, "does not divide"),
        ({"sets": ["eps=1.0", "search.eps=1.0..2.0"]}, "give one of the two"),
        ({"guesses": [{"eps": 9.0}]}, "first_guesses: eps=9.0 is outside"),
        ({"function": lambda trial: {"kd_loss_weight": -1.0}}, "kd_loss_weight: -1.0"),
        ({"function": lambda trial: {"stages": [1], "eps": [1.0, 1.0, 1.0]}}, "eps has 3 values"),
        ({"function": lambda trial: 1 / 0}, "fails: ZeroDivisionError"),
    ],
)
def test_a_bad_space_is_told(arguments, said):
    with pytest.raises(InputError) as caught:
        checked(**arguments)
    assert said in str(caught.value)
