import optuna
import pytest

from search.settings import compose, resolve
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


def checked(function=space, overrides=None, guesses=()):
    study = Study(space=function, scales={"embedded": Scale(**FIELDS)}, first_guesses=list(guesses))
    settings = resolve(study, {"name": "n", "space": "s.py"}, [])
    wrapped = SearchSpace(function, overrides or {})
    wrapped.check(settings, lambda fields: compose(settings, {}, [1, 2, 3, 4], fields))
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
    SearchSpace(space, {"lr": "1e-4..1e-2", "momentum": "0.8..0.9"})(trial)
    assert trial.distributions["lr"].log and not trial.distributions["momentum"].log


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"overrides": {"epz": 1.0}}, "search.epz: the space suggests no 'epz'; did you mean eps"),
        ({"overrides": {"eps": "2.0..1.0"}}, "LOW..HIGH"),
        ({"overrides": {"temperature": "-1..1"}}, "temperature"),
        ({"guesses": [{"epsilon": 1.0}]}, "first_guesses: the space suggests no 'epsilon'"),
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
