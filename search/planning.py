"""How a study's sampler and scheduler go with its space, as preflight finds out."""

from collections.abc import Callable
from typing import Any

from search.rungs import scheduler_notes
from search.settings import Settings
from search.space import SAMPLES, SearchSpace
from trainables.config import TrialConfig
from trainables.errors import InputError


def enumerate_grid(
    space: SearchSpace,
    settings: Settings,
    composed: Callable[[dict[str, Any]], TrialConfig],
    guesses: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Every point of the space, those that a first guess describes before the others."""
    points = []
    for params, fields in space.grid(settings.seed):
        composed(fields)
        points.append(params)
    return sorted(points, key=lambda point: not any(_agree(point, guess) for guess in guesses))


def search_notes(settings: Settings, space: SearchSpace) -> list[str]:
    """What sampler, scheduler and the baselines' searches do otherwise than one may expect.

    Raises:
        InputError: the sampler has nothing to do in this space.
    """
    from search.samplers import models_nothing, sampler_notes

    distributions = space.distributions(SAMPLES, settings.seed)
    conditional = space.conditional(SAMPLES, settings.seed)
    if settings.sampler == "cmaes" and models_nothing(distributions, conditional):
        raise InputError("sampler: 'cmaes' needs a number that every trial has, and this space has none; take tpe")
    notes = sampler_notes(settings.sampler, settings.scheduler, distributions, conditional)
    if settings.tune_baselines and not settings.baselines:
        notes.append(f"tune_baselines {settings.tune_baselines} tunes nothing, as there are no baselines")
    return notes + scheduler_notes(settings)


def final_notes(settings: Settings) -> list[str]:
    """What the final's seeds are too few for; a smoke run is not meant to show anything."""
    if not settings.finalists or not settings.baselines or settings.smoke or settings.seeds > 2:
        return []
    if settings.seeds == 1:
        return ["seeds 1: over training runs no difference from a baseline can be judged; --set seeds=3 or more can"]
    return ["seeds 2: a paired test over two seeds hardly ever shows a difference; --set seeds=3 or more may"]


def _agree(point: dict[str, Any], guess: dict[str, Any]) -> bool:
    return all(name in point and point[name] == value for name, value in guess.items())
