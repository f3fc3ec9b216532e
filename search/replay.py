"""Parameters of an earlier trial in the space as it is now: what of them fits, and where it leads."""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler

from search.space import SearchSpace

NOWHERE = object()


def as_in(distribution: BaseDistribution, value: Any) -> Any:
    """A value as the distribution has it, `NOWHERE` where it has none.

    Numbers are compared by value, as a space's 1.0 is 1 on the command line; but 1 is no True, although Python says so.
    """
    truth = isinstance(value, bool)
    if isinstance(distribution, CategoricalDistribution):
        same = (choice for choice in distribution.choices if isinstance(choice, bool) == truth and choice == value)
        return next(same, NOWHERE)
    if truth or not isinstance(value, int | float):
        return NOWHERE
    kind = int if isinstance(distribution, IntDistribution) else float
    inside = kind(value) == value and distribution._contains(distribution.to_internal_repr(kind(value)))
    return kind(value) if inside else NOWHERE


def replay(
    space: SearchSpace, params: dict[str, Any], seed: int = 0
) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Runs the space's function with an earlier trial's parameters, where they fit; draws the others.

    Args:
        space: the space as it is now.
        params: by Optuna's names.
        seed: of what is drawn.

    Returns:
        The fields that the space's function returned, and the distribution of each parameter that it suggested.

    Raises:
        InputError: the function fails.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trial = optuna.create_study(sampler=_Replay(params, seed)).ask()
    return space(trial), trial.distributions


def words(distribution: BaseDistribution) -> str:
    """A distribution as `--set search.PARAM=` takes it, with what else there is to it."""
    if isinstance(distribution, CategoricalDistribution):
        return "|".join(map(str, distribution.choices))
    steps = distribution.step if distribution.step not in (None, 1) else None
    more = ", ".join(["log"] * distribution.log + [f"step {steps}"] * (steps is not None))
    return f"{distribution.low}..{distribution.high}" + (f" ({more})" if more else "")


class _Replay(BaseSampler):
    """Draws what an earlier trial had, and at random where that does not fit."""

    def __init__(self, params: dict[str, Any], seed: int):
        self._params, self._random = params, RandomSampler(seed=seed)

    def infer_relative_search_space(self, study, trial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study, trial, search_space) -> dict[str, Any]:
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution) -> Any:
        value = as_in(param_distribution, self._params.get(param_name, NOWHERE))
        if value is not NOWHERE:
            return value
        return self._random.sample_independent(study, trial, param_name, param_distribution)
