"""Optuna's samplers by our names for them, made to repeat themselves, and what each of them cannot do."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, BruteForceSampler, CmaEsSampler, GPSampler, TPESampler
from optuna.samplers._brute_force import _TreeNode
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.study._multi_objective import _fast_non_domination_rank
from optuna.trial import FrozenTrial, TrialState

STARTUP = 8  # trials before a model of them is worth anything; Optuna's 10 are much of a study of tens
MOST, BEST = 100, 40  # trials that a model is fitted to, and the best among them: its time would grow with the study
POPULATION = 8  # of the genetic ones: several generations within tens of trials; Optuna's 50 would be random search
PARTIAL = "partial"  # user attribute of a trial whose parameters are no whole point of the space
LEARN_FROM_OTHERS = ("tpe", "gp")  # those that use trials which they did not draw
COMPLETE_ONLY = ("gp", "nsga2", "nsga3")  # those that learn nothing from a pruned trial
COMMON_ONLY = ("gp", "cmaes", "nsga2", "nsga3")  # those that model the parameters which all complete trials have


def make_sampler(name: str, seed: int, startup: int = STARTUP) -> "Repeatable":
    """A sampler by our name for it; `_Tpe`, multivariate, grouped and with constant liar, is the default.

    Args:
        name: one of `search.settings.Settings.sampler`.
        seed: with the trial's number it decides every draw.
        startup: how many results TPE and GP wait for before they make a model of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return Repeatable(_make(name, seed % 2**32, startup), seed)  # the most that NumPy takes


def _make(name: str, seed: int, startup: int) -> BaseSampler:
    samplers = optuna.samplers

    def tpe() -> BaseSampler:
        return _Tpe(seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=startup)

    silent = {"seed": seed, "warn_independent_sampling": False}  # `sampler_notes` says it once, at the start
    match name:
        case "tpe":
            return tpe()
        case "gp":
            return GPSampler(**silent, n_startup_trials=startup, independent_sampler=tpe())
        case "cmaes":  # pruned trials teach it too, by their last value: most trials of a study are pruned
            return _Cmaes(**silent, independent_sampler=tpe(), consider_pruned_trials=True)
        case "qmc":  # unscrambled, its first point would be all lower bounds, whatever the seed
            return samplers.QMCSampler(**silent, scramble=True)
        case "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
        case "nsga3":
            return samplers.NSGAIIISampler(seed=seed, population_size=POPULATION)
        case "brute":
            return _Brute(seed=seed)
        case _:  # random; and grid, of which every point is enqueued: it draws nothing
            return samplers.RandomSampler(seed=seed)


class Repeatable(BaseSampler):
    """A sampler whose draws depend on the seed, the trial's number and the trials that ended before, on nothing else.

    Optuna's samplers carry the state of their random numbers from trial to trial, so that a study that goes on in
    another process would draw others than one that was never interrupted. Here every trial begins with a state of its
    own.
    """

    def __init__(self, sampler: BaseSampler, seed: int):
        self.sampler, self._seed = sampler, seed
        self._states = list(_random_states(sampler))
        self._view: _View | None = None

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._view = None
        seeds = np.random.SeedSequence([self._seed, trial.number]).generate_state(len(self._states))
        for state, seed in zip(self._states, seeds, strict=True):
            state.rng.seed(seed)
        if isinstance(self.sampler, GPSampler):
            self.sampler._gprs_cache_list = None  # else the fit would start from that of the trial before
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        seen = _View(study, _one_of_each) if isinstance(self.sampler, TPESampler) else study
        return self.sampler.infer_relative_search_space(seen, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return self.sampler.sample_relative(self._seen(study), trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution) -> Any:
        return self.sampler.sample_independent(self._seen(study), trial, param_name, param_distribution)

    def _seen(self, study: Study) -> "Study | _View":
        """What a model is fitted to, chosen once a trial: each parameter that is drawn alone asks for it."""
        if not isinstance(self.sampler, TPESampler | GPSampler):
            return study
        self._view = self._view or _View(study, _worth_a_model)
        return self._view

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.sampler.after_trial(study, trial, state, values)

    def exhausted(self, study: Study) -> bool:
        """Whether there is nothing left to draw: every point of the space has had a trial. Only `brute` knows."""
        return isinstance(self.sampler, _Brute) and self.sampler.exhausted(study)


class _View:
    """A study of which a sampler sees some of the trials, for one draw: grouped TPE asks for them many times."""

    def __init__(self, study: Study, keep: Callable[[Study, list[FrozenTrial]], list[FrozenTrial]]):
        self._study, self._keep = study, keep
        self._known: dict[tuple[TrialState, ...] | None, list[FrozenTrial]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Iterable[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """As Optuna's, but never a copy of a trial."""
        key = states and tuple(states)
        if key not in self._known:
            self._known[key] = self._keep(self._study, self._study._get_trials(False, key, use_cache))
        return self._known[key]


def _worth_a_model(study: Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """All of a study of up to `MOST` trials; of a larger one the best and, of the rest, the newest.

    Neither model feels the loss: TPE sets the best tenth of what it sees against all others and lets the old ones of
    these count less and less, and a GP is asked about the neighbourhood of the best. Over 24 synthetic landscapes of
    340 trials each, TPE with 100 ends 2.3 ± 0.2 points below the optimum, with 150 2.5 ± 0.3.
    """
    if len(trials) <= MOST:
        return trials
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in study.directions]
    best = []
    if complete:
        losses = np.array([trial.values for trial in complete]) * signs
        ranks = _fast_non_domination_rank(losses, n_below=min(BEST, len(complete)))
        best = [complete[index] for index in np.argsort(ranks, kind="stable")[:BEST]]
    numbers = {trial.number for trial in best}
    others = (trial for trial in reversed(trials) if trial.number not in numbers)  # few of thousands are looked at
    return sorted([*best, *itertools.islice(others, MOST - len(best))], key=lambda trial: trial.number)


def _one_of_each(study: Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The first trial with each set of parameters: all that a grouped search space is inferred from."""
    first: dict[tuple[str, ...], FrozenTrial] = {}
    for trial in trials:
        first.setdefault(tuple(trial.distributions), trial)
    return list(first.values())


class _Tpe(TPESampler):
    """Optuna's multivariate TPE, which draws every other trial parameter by parameter.

    A model of ten parameters together knows little after tens of trials and stays near the few good ones; one of each
    parameter puts together what was good in different trials, but sees no interaction. On a hundred of the benchmark's
    landscapes (`samplers`) the first alone ends 4.1 points below the optimum, the second 3.5, both by turns 3.6.
    """

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {} if trial.number % 2 else super().infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return super().sample_relative(study, trial, search_space) if search_space else {}


class _Cmaes(CmaEsSampler):
    """Optuna's CMA-ES over what all trials have, the pruned ones that it learns from too.

    Its own search space is that of the complete ones, so that it fails at a pruned one which lacks a parameter; and
    once a parameter turns out to be missing in some trials, its optimizer, of one dimension more, is off for good. Here
    an optimizer of the smaller space takes over what the trials have shown.
    """

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self._search_space = IntersectionSearchSpace(include_pruned=True)
        self._dimensions = 0

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        self._dimensions = len(search_space)
        return super().sample_relative(study, trial, search_space)

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        optimizer = super()._restore_optimizer(completed_trials)
        return optimizer if optimizer is not None and optimizer.dim == self._dimensions else None


class _Brute(BruteForceSampler):
    """Optuna's brute force for ask-and-tell, where nobody can be told by `Study.stop` that it is done."""

    def after_trial(self, study, trial, state, values) -> None:
        """Nothing: Optuna's own would call `Study.stop`, which raises outside of `Study.optimize`."""

    def exhausted(self, study: Study) -> bool:
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
        trials = [one for one in study.get_trials(deepcopy=False, states=states) if PARTIAL not in one.user_attrs]
        tree = _TreeNode()
        self._populate_tree(tree, trials, {})
        return bool(trials) and not tree.is_any_expandable(exclude_running=True)

    @staticmethod
    def _populate_tree(tree: _TreeNode, trials: list[FrozenTrial], params: dict[str, Any]) -> None:
        whole = [trial for trial in trials if PARTIAL not in trial.user_attrs]
        BruteForceSampler._populate_tree(tree, whole, params)


def _random_states(sampler: BaseSampler) -> Iterator[LazyRandomState]:
    """The states of a sampler's random numbers and of those samplers that it asks itself."""
    for value in vars(sampler).values():
        if isinstance(value, LazyRandomState):
            yield value
        elif isinstance(value, BaseSampler):
            yield from _random_states(value)


def sampler_notes(
    name: str, scheduler: str, distributions: dict[str, BaseDistribution], conditional: list[str]
) -> list[str]:
    """What a sampler does otherwise than one may expect, in this very space.

    Args:
        name: the sampler.
        scheduler: the study's.
        distributions: of all parameters that the space suggests.
        conditional: those of them that only some trials have.
    """
    choices = optuna.distributions.CategoricalDistribution
    kinds = [name for name in distributions if isinstance(distributions[name], choices) and name not in conditional]
    notes = []
    if name == "cmaes" and (kinds or conditional):
        parts = [f"{_comma(kinds)} (choices)"] * bool(kinds) + [f"{_comma(conditional)} (in some trials only)"] * bool(
            conditional
        )
        notes.append(
            f"sampler cmaes models the numbers that every trial has; TPE draws the rest, each for itself: "
            f"{'; '.join(parts)}"
        )
    elif name == "gp" and conditional:
        notes.append(
            f"sampler gp models the parameters that every trial has; TPE draws those of some trials, each for itself: "
            f"{_comma(conditional)}"
        )
    elif name in ("nsga2", "nsga3") and conditional:
        notes.append(
            f"sampler {name} crosses the parameters that every trial has; those of some trials are drawn at random: "
            f"{_comma(conditional)}"
        )
    elif name == "qmc" and conditional:
        notes.append(
            "sampler qmc spreads the parameters of the first trial evenly; where that has none of these, which only "
            f"some trials have, they are drawn at random: {_comma(conditional)}"
        )
    if name in COMPLETE_ONLY and scheduler != "none":
        notes.append(
            f"sampler {name} learns from complete trials alone, not from those that {scheduler} stops "
            "(--set scheduler=none, or sampler=tpe)"
        )
    return notes


def models_nothing(distributions: dict[str, BaseDistribution], conditional: list[str]) -> bool:
    """Whether there is no number that every trial has: CMA-ES would have nothing to do."""
    choices = optuna.distributions.CategoricalDistribution
    return all(isinstance(one, choices) or name in conditional for name, one in distributions.items())


def _comma(names: list[str]) -> str:
    return ", ".join(names)
