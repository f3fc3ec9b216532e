"""What a study takes over from earlier ones: first guesses, and observations where their results mean the same here."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from search.earlier import EarlierStudy, EarlierTrial, facts_of
from search.ledger import COMPLETE, PRUNED
from search.objective import parse_objectives
from search.resume import comparable, what_stays
from search.settings import Settings
from search.space import SAMPLES, SearchSpace
from search.tracking.facts import as_text, flat_params
from trainables.config import TrialConfig
from trainables.errors import InputError

MOST_GUESSES = 3  # of one earlier study


@dataclass
class Taken:
    """What a study begins with."""

    guesses: list[dict[str, Any]] = field(default_factory=list)
    priors: list[Any] = field(default_factory=list)  # Optuna's trials
    notes: list[str] = field(default_factory=list)
    searched: dict[str, int] = field(default_factory=dict)  # by study of which something was taken, its ended trials


def take_over(
    studies: Iterable[EarlierStudy],
    space: SearchSpace,
    compose: Callable[[dict[str, Any]], TrialConfig],
    settings: Settings,
    data_fingerprint: str,
) -> Taken:
    """Chooses first guesses and observations from earlier studies, and says what was taken.

    An observation is taken where the study's objectives, pair, data, recipe and epochs are the same, and where the
    trial's parameters lead to the very configuration that it had. Parameters that only this study searches are missing
    then; TPE bears that, other samplers would lose those parameters for good.

    Args:
        studies: earlier ones, as `search.earlier.read_studies` found them.
        space: this study's.
        compose: makes a whole configuration of a trial's fields, raising InputError.
        settings: this study's, resolved.
        data_fingerprint: of its data.

    Raises:
        InputError: a study shares no parameter with the space.
    """
    from search.samplers import LEARN_FROM_OTHERS

    taken, problems = Taken(), []
    mine = set(space.distributions(SAMPLES, settings.seed))
    for study in studies:
        theirs = set().union(*(trial.params for trial in study.complete()))
        if not theirs & mine:
            problems.append(
                f"--warm-start: study '{study.name}' shares no parameter with this space: it searched "
                f"{', '.join(sorted(theirs)) or 'none'}, this one searches {', '.join(sorted(mine)) or 'none'}"
            )
            continue
        best = (trial.params for trial in study.complete())
        guesses = list(islice(fitting(best, space, compose), MOST_GUESSES))
        taken.guesses += guesses
        priors = []
        said = f"warm start from {study.name}: {_count(len(guesses), 'first guess', 'es')}"
        ended = [trial for trial in study.trials if trial.state in (COMPLETE, PRUNED)]
        if why := _not_comparable(study, settings, data_fingerprint):
            said += f"; not as observations: {why}"
        elif settings.sampler not in LEARN_FROM_OTHERS:
            said += f"; not as observations: sampler {settings.sampler} learns from its own trials alone"
        else:
            priors = list(filter(None, (_observation(study, trial, space, compose, settings) for trial in ended)))
            taken.priors += priors
            said += f", {_count(len(priors), 'observation')} (same pair, data and recipe)"
            if outside := len(ended) - len(priors):
                said += f"; {_count(outside, 'other trial')} cannot be had in this space"
        taken.notes.append(said)
        if guesses or priors:
            taken.searched[study.name] = len(ended)
    if problems:
        raise InputError(problems)
    return taken


def fitting(
    several: Iterable[dict[str, Any]], space: SearchSpace, compose: Callable[[dict[str, Any]], TrialConfig]
) -> Iterator[dict[str, Any]]:
    """What this space has of other parameters, each once; nothing of those of which no trial could come here."""
    found: list[dict[str, Any]] = []
    for params in several:
        guess = space.matching(params)
        if not guess or guess in found:
            continue
        try:
            compose(space.fields(guess))
        except InputError:
            continue
        found.append(guess)
        yield guess


def _not_comparable(study: EarlierStudy, settings: Settings, data_fingerprint: str) -> str | None:
    """Why the study's results mean something else here."""
    stays = what_stays(settings, data_fingerprint)
    if study.facts.get("comparable") == comparable(stays):
        return None
    here = facts_of(stays)
    objectives = {one.metric: one.maximize for one in parse_objectives(settings.objectives, settings.metrics)}
    if list(study.objectives.items()) != list(objectives.items()):
        return "other objectives"
    named = {"data_fingerprint": "other data", "pair": "another pair", "epochs": "trials of another length"}
    for name, words in named.items():
        if str(study.facts.get(name)) != str(here[name]):
            return words
    return "another recipe, or other settings of data or models"


def _observation(
    study: EarlierStudy, trial: EarlierTrial, space: SearchSpace, compose: Callable, settings: Settings
) -> Any | None:
    """The trial as Optuna's, or None where this space has no such trial."""
    import optuna

    from search.journal import SEARCHED
    from search.optuna_study import FROM, STATES
    from search.replay import NOWHERE, as_in, replay
    from search.samplers import PARTIAL

    try:
        fields, branch = replay(space, trial.params)
        config = _text(compose(fields))
        kept = {name: as_in(branch[name], trial.params[name]) for name in branch if name in trial.params}
        missing = branch.keys() - kept.keys()
        other = _text(compose(replay(space, trial.params, seed=1)[0])) if missing else config
    except InputError:
        return None
    if NOWHERE in kept.values() or (missing and settings.sampler != "tpe"):
        return None
    # What depends on the missing parameters is not compared.
    decided = {name for name in config.keys() & other.keys() & trial.config.keys() if config[name] == other[name]}
    if any(config[name] != trial.config[name] for name in decided):
        return None
    values: list[float] | None = [trial.metrics.get(metric, math.nan) for metric in study.objectives]
    curve = trial.curve(next(iter(study.objectives))) if len(study.objectives) == 1 else {}
    curve = {epoch: value for epoch, value in sorted(curve.items()) if math.isfinite(value)}
    if trial.state == PRUNED:  # its value is its last one, as Optuna has it
        values = list(curve.values())[-1:]
    if not values or not all(map(math.isfinite, values)):
        return None
    attributes = {FROM: f"{study.name}/{trial.trial_id}", SEARCHED: trial.params, "state": trial.state}
    return optuna.trial.create_trial(
        state=STATES[trial.state],
        values=values,
        params=kept,
        distributions={name: branch[name] for name in kept},
        user_attrs=attributes | ({PARTIAL: True} if missing else {}),
        intermediate_values=curve,
    )


def _text(config: TrialConfig) -> dict[str, str]:
    return {name: as_text(value) for name, value in flat_params(config.model_dump()).items()}


def _count(count: int, word: str, plural: str = "s") -> str:
    return f"{count or 'no'} {word}{plural * (count != 1)}"
