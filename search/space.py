"""The search function of a space as the study uses it: ranges overridden, and all that comes out checked."""

import difflib
import warnings
from collections.abc import Callable
from typing import Any

from search.settings import SEARCHABLE
from search.values import parse_value
from trainables.config import TrialConfig
from trainables.errors import InputError

SAMPLES = 40  # how often a space is tried at load: enough to meet each branch of a few choices
MAX_GRID = 500  # points that are still enumerated, in a few seconds


class SearchSpace:
    """Wraps a space's function with the study's overrides (`--set search.PARAM=…`) and its pinned fields.

    Of a parameter suggested as `FIELD@SOMETHING` (a distiller's own, say) the override may name the field alone.

    An override is a range `lo..hi`, choices `a|b|c`, or a single value; for a parameter that the space does not suggest
    but a trial has (`lr`, `weight_decay`, …) it adds that parameter to the search. A pinned field that the space would
    suggest is not searched (pinned `stages` by the names `stage1` to `stage4`).

    Args:
        function: the space's `space(trial)`.
        overrides: by parameter, as the command line gave them.
        pinned: fields of a trial that hold for every trial.
    """

    def __init__(self, function: Callable[[Any], dict[str, Any]], overrides: dict[str, Any], pinned: dict[str, Any]):
        self._function = function
        self._overrides = {name: _Override(name, value) for name, value in overrides.items()}
        fixed = {name: value for name, value in pinned.items() if not isinstance(value, list)}
        if "stages" in pinned:
            fixed |= {f"stage{stage}": stage in pinned["stages"] for stage in (1, 2, 3, 4)}
        self._all = {name: _Override(name, value, fixed=True) for name, value in fixed.items()} | self._overrides
        self._asked: set[str] = set()  # all that the function has suggested so far

    def __call__(self, trial) -> dict[str, Any]:
        """The trial's fields, in the names of `TrialConfig`.

        Raises:
            InputError: the space's function fails, or returns no dict.
        """
        try:
            fields = dict(self._function(_Trial(trial, self._all, self._asked)))
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"space: space(trial) fails: {type(error).__name__}: {error}") from error
        for name, override in self._overrides.items():
            if name not in self._asked and name in SEARCHABLE:
                fields[name] = override.suggest(trial, _kind(name))
        return fields

    def samples(self, count: int, seed: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Random draws, as (parameters by the space's names, fields of a trial).

        Raises:
            InputError: as calling it.
        """
        study = _random_study(seed)
        return [(trial.params, fields) for trial in (study.ask() for _ in range(count)) for fields in [self(trial)]]

    def check(self, seed: int, compose: Callable[[dict[str, Any]], TrialConfig]) -> list[TrialConfig]:
        """Draws from the space and checks all that comes out, and the overrides against what it suggests.

        Args:
            seed: of the draws.
            compose: makes a whole configuration of a trial's fields, raising InputError.

        Returns:
            What was drawn.

        Raises:
            InputError: every problem at once.
        """
        problems: list[str] = []
        configs = []
        for _, fields in self.samples(SAMPLES, seed):
            try:
                configs.append(compose(fields))
            except InputError as error:
                problems += error.problems
        for name in set(self._overrides) - self._asked - SEARCHABLE:
            problems.append(f"search.{name}: the space suggests no '{name}'{_near(name, self._asked)}")
        if problems:
            raise InputError(list(dict.fromkeys(problems)))
        return configs

    def grid(self, seed: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Every combination of what the space suggests, once, as `samples` gives them, in an order drawn from the seed.

        Optuna's BruteForceSampler walks the space, so a parameter may depend on another one's value.

        Raises:
            InputError: as calling it and `check_finite`, or there are more than `MAX_GRID` points.
        """
        self.check_finite("grid", seed)
        points = self._walk(seed)
        if len(points) > MAX_GRID:
            raise InputError(
                f"sampler: 'grid' has more than {MAX_GRID} points in this space; give parameters fewer values "
                "(--set 'search.PARAM=A|B'), or take another sampler: 'brute' has no such limit"
            )
        return points

    def count(self, seed: int) -> int | None:
        """How many points `brute` will try; None where they are too many to be counted.

        Raises:
            InputError: as calling it and `check_finite`.
        """
        self.check_finite("brute", seed)
        count = len(self._walk(seed))
        return count if count <= MAX_GRID else None

    def check_finite(self, sampler: str, seed: int) -> None:
        """Whether a sampler that tries every value would come to an end.

        Raises:
            InputError: a parameter is continuous or has too many values, one line each.
        """
        distributions = self.distributions(SAMPLES, seed)
        if problems := list(filter(None, (_endless(sampler, name, one) for name, one in distributions.items()))):
            raise InputError(problems)

    def guess(self, guess: dict[str, Any], compose: Callable[[dict[str, Any]], TrialConfig]) -> dict[str, Any] | None:
        """A first guess without what the overrides and pinned fields leave no room for; `check` comes first.

        Returns:
            None where that takes away the branch which the rest belongs to.

        Raises:
            InputError: it names what the space does not suggest, or a value outside its range.
        """
        if self._all and self._loses_its_branch(guess):
            return None
        kept, problems = self._allowed(guess), []
        try:
            trial, fields = self._with(kept)
            compose(fields)
            for name, value in kept.items():
                if not _contains(trial, name, value):
                    problems.append(f"first_guesses: {name}={value!r} is outside {trial.distributions[name]}")
        except InputError as error:
            problems += [f"first_guesses: {kept}: {problem}" for problem in error.problems]
        names = self._asked | set(self._overrides)  # with those of the guess's own branch
        problems += [
            f"first_guesses: the space suggests no '{name}'{_near(name, names)}" for name in guess if name not in names
        ]
        if problems:
            raise InputError(list(dict.fromkeys(problems)))
        return kept

    def fields(self, params: dict[str, Any]) -> dict[str, Any]:
        """The trial's fields for given parameters; what they leave open is drawn.

        Raises:
            InputError: as calling it.
        """
        return self._with(params)[1]

    def distributions(self, count: int, seed: int) -> dict[str, Any]:
        """Optuna's distribution of each parameter that so many random draws meet."""
        study, found = _random_study(seed), {}
        for _ in range(count):
            trial = study.ask()
            self(trial)
            found |= trial.distributions
        return found

    def conditional(self, count: int, seed: int) -> list[str]:
        """The parameters that some of so many random draws have and others have not."""
        drawn = [set(params) for params, _ in self.samples(count, seed)]
        return sorted(set.union(*drawn) - set.intersection(*drawn))

    def matching(self, params: dict[str, Any]) -> dict[str, Any]:
        """Another study's parameters as a first guess: those that this space suggests too, where it allows them."""
        names = self._asked | set(self._overrides)
        kept = self._allowed({name: value for name, value in params.items() if name in names})
        while kept:
            try:
                trial, _ = self._with(kept)
            except InputError:  # a value that this space's choices lack, or one of another type
                alone = (name for name in kept if not self._takes({name: kept[name]}))
                among = (name for name in kept if self._takes({key: kept[key] for key in kept if key != name}))
                del kept[next(alone, None) or next(among, None) or next(iter(kept))]
                continue
            return {name: value for name, value in kept.items() if _contains(trial, name, value)}
        return {}

    def _takes(self, params: dict[str, Any]) -> bool:
        try:
            self._with(params)
        except InputError:
            return False
        return True

    def _walk(self, seed: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Every point of a finite space, or the first `MAX_GRID` and one more."""
        import optuna

        points: list[tuple[dict[str, Any], dict[str, Any]]] = []

        def visit(trial) -> float:
            fields = self(trial)
            points.append((trial.params, fields))
            return 0.0

        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=seed))
        study.optimize(visit, n_trials=MAX_GRID + 1)  # the sampler itself ends it after the last point
        return points

    def _loses_its_branch(self, guess: dict[str, Any]) -> bool:
        """Whether the space itself would suggest a name of the guess that it does not under the overrides."""
        kept = self._allowed(guess)
        try:
            plain, _ = SearchSpace(self._function, {}, {})._with(guess)
            trial, _ = self._with(kept)
        except InputError:
            return False  # told as a problem of the guess
        return bool(guess.keys() & plain.params.keys() & kept.keys() - trial.params.keys())

    def _allowed(self, guess: dict[str, Any]) -> dict[str, Any]:
        overrides = {name: _override_of(name, self._all) for name in guess}
        return {name: value for name, value in guess.items() if not overrides[name] or overrides[name].allows(value)}

    def _with(self, guess: dict[str, Any]):
        study = _random_study(0)
        study.enqueue_trial(guess)
        trial = study.ask()
        return trial, self(trial)


class _Override:
    """`lo..hi`, `a|b|c` or a value; a fixed one is a value whatever it looks like."""

    def __init__(self, name: str, value: Any, fixed: bool = False):
        self.name, self.low, self.high, self.choices = name, None, None, [value]
        if fixed or not isinstance(value, str):
            return
        if ".." in value:
            low, high = (parse_value(part) for part in value.split("..", 1))
            if not all(isinstance(bound, int | float) for bound in (low, high)) or low >= high:
                raise InputError(f"search.{name}: '{value}' is no range; write LOW..HIGH with LOW below HIGH")
            self.low, self.high, self.choices = low, high, None
        elif "|" in value:
            self.choices = [parse_value(part) for part in value.split("|")]

    def allows(self, value: Any) -> bool:
        """Whether a first guess may have this value: a single value is not searched at all."""
        if self.choices is not None:
            return len(self.choices) > 1 and value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def suggest(self, trial, kind: type = float, log: bool | None = None, name: str | None = None):
        """Suggested under the override's own name, or that of the parameter that it overrides."""
        name = name or self.name
        if self.choices is not None:
            return self.choices[0] if len(self.choices) == 1 else trial.suggest_categorical(name, self.choices)
        if log is None:
            log = self.low > 0 and self.high / self.low >= 10
        if log and self.low <= 0:
            raise InputError(
                f"search.{self.name}: {self.low}..{self.high} must be above 0, it is searched on a log scale"
            )
        if kind is int:
            return trial.suggest_int(name, int(self.low), int(self.high), log=log)
        return trial.suggest_float(name, float(self.low), float(self.high), log=log)


class _Trial:
    """Optuna's trial, with the overridden parameters suggested by the overrides."""

    def __init__(self, trial, overrides: dict[str, _Override], asked: set[str]):
        self._trial, self._overrides, self.asked = trial, overrides, asked

    def __getattr__(self, name: str):
        return getattr(self._trial, name)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False):
        if override := self._override(name):
            return override.suggest(self._trial, float, log, name)
        return self._trial.suggest_float(name, low, high, step=step, log=log)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False):
        if override := self._override(name):
            return override.suggest(self._trial, int, log, name)
        return self._trial.suggest_int(name, low, high, step=step, log=log)

    def suggest_categorical(self, name: str, choices):
        if override := self._override(name):
            return override.suggest(self._trial, _kind(name), name=name)
        return self._trial.suggest_categorical(name, choices)

    def _override(self, name: str) -> _Override | None:
        override = _override_of(name, self._overrides)
        self.asked |= {name, override.name} if override else {name}
        return override


def _override_of(name: str, overrides: dict[str, _Override]) -> _Override | None:
    return overrides.get(name) or overrides.get(name.partition("@")[0])


def _random_study(seed: int):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", message="Fixed parameter .* is out of range")  # told by ourselves
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def _kind(name: str) -> type:
    """Whether a field of a trial is a whole number."""
    return int if name in TrialConfig.model_fields and TrialConfig.model_fields[name].annotation is int else float


def _contains(trial, name: str, value: Any) -> bool:
    """Whether the trial's range of that parameter has the value; where the branch was not taken, nobody knows."""
    distribution = trial.distributions.get(name)
    return distribution is None or distribution._contains(distribution.to_internal_repr(value))


def _endless(sampler: str, name: str, distribution) -> str | None:
    """Why a sampler cannot try every value of a parameter: it is continuous, or has too many."""
    low, high, step = (getattr(distribution, bound, None) for bound in ("low", "high", "step"))
    if low is None or (step is not None and (high - low) / step < MAX_GRID):
        return None
    what = f"is continuous ({low} to {high})" if step is None else f"has more than {MAX_GRID} values"
    return (
        f"sampler: '{sampler}' tries every value and {name} {what}; give it a few "
        f"(--set 'search.{name}={low}|{high}'), a step in the space, or take another sampler"
    )


def _near(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=2)
    return f"; did you mean {' or '.join(near)}?" if near else f"; it suggests {', '.join(sorted(known))}"
