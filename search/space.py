"""The search function of a space as the study uses it: ranges overridden, and all that comes out checked."""

import difflib
from collections.abc import Callable
from typing import Any

from search.settings import SEARCHABLE, Settings, parse_value
from trainables.config import TrialConfig
from trainables.errors import InputError

SAMPLES = 40  # how often a space is tried at load: enough to meet each branch of a few choices


class SearchSpace:
    """Wraps a space's function with the study's overrides (`--set search.PARAM=…`).

    An override is a range `lo..hi`, choices `a|b|c`, or a single value; for a parameter that the space does not suggest
    but a trial has (`lr`, `weight_decay`, …) it adds that parameter to the search.

    Args:
        function: the space's `space(trial)`.
        overrides: by parameter, as the command line gave them.
    """

    def __init__(self, function: Callable[[Any], dict[str, Any]], overrides: dict[str, Any]):
        self._function = function
        self._overrides = {name: _Override(name, value) for name, value in overrides.items()}
        self._asked: set[str] = set()  # all that the function has suggested so far

    def __call__(self, trial) -> dict[str, Any]:
        """The trial's fields, in the names of `TrialConfig`."""
        fields = dict(self._function(_Trial(trial, self._overrides, self._asked)))
        for name, override in self._overrides.items():
            if name not in self._asked and name in SEARCHABLE:
                fields[name] = override.suggest(trial)
        return fields

    def samples(self, count: int, seed: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Random draws, as (parameters by the space's names, fields of a trial).

        Raises:
            InputError: the space's function fails, or returns no dict.
        """
        study = _random_study(seed)
        drawn = []
        for _ in range(count):
            trial = study.ask()
            try:
                fields = self(trial)
            except InputError:
                raise
            except Exception as error:
                raise InputError(f"space: space(trial) fails: {type(error).__name__}: {error}") from error
            drawn.append((trial.params, fields))
        return drawn

    def check(self, settings: Settings, compose: Callable[[dict[str, Any]], TrialConfig]) -> None:
        """Draws from the space and checks all that comes out, and the first guesses against what it suggests.

        Args:
            compose: makes a whole configuration of a trial's fields, raising InputError.

        Raises:
            InputError: every problem at once.
        """
        problems: list[str] = []
        names: dict[str, Any] = {}
        study = _random_study(settings.seed)
        for params, fields in self.samples(SAMPLES, settings.seed):
            names |= dict.fromkeys([*params, *self._asked, *(SEARCHABLE & set(self._overrides))])
            _collect(lambda fields=fields: compose(fields), problems)
        for name in self._overrides:
            if name not in names:
                problems.append(f"search.{name}: the space suggests no '{name}'{_near(name, set(names))}")
        for guess in settings.first_guesses:
            for name in set(guess) - set(names):
                problems.append(f"first_guesses: the space suggests no '{name}'{_near(name, set(names))}")
            study.enqueue_trial(guess)
            trial = study.ask()
            _collect(lambda trial=trial: compose(self(trial)), problems)
            for name, value in guess.items():
                if name in trial.distributions and not trial.distributions[name]._contains(
                    trial.distributions[name].to_internal_repr(value)
                ):
                    problems.append(f"first_guesses: {name}={value!r} is outside {trial.distributions[name]}")
        if problems:
            raise InputError(list(dict.fromkeys(problems)))


class _Override:
    """`lo..hi`, `a|b|c` or a value."""

    def __init__(self, name: str, value: Any):
        self.name, self.low, self.high, self.choices = name, None, None, None
        if isinstance(value, str) and ".." in value:
            low, high = (parse_value(part) for part in value.split("..", 1))
            if not all(isinstance(bound, int | float) for bound in (low, high)) or low >= high:
                raise InputError(f"search.{name}: '{value}' is no range; write LOW..HIGH with LOW below HIGH")
            self.low, self.high = low, high
        elif isinstance(value, str) and "|" in value:
            self.choices = [parse_value(part) for part in value.split("|")]
        else:
            self.choices = [value]

    def suggest(self, trial, kind: type = float, log: bool | None = None):
        if self.choices is not None:
            return self.choices[0] if len(self.choices) == 1 else trial.suggest_categorical(self.name, self.choices)
        if log is None:
            log = self.low > 0 and self.high / self.low >= 10
        if log and self.low <= 0:
            raise InputError(
                f"search.{self.name}: {self.low}..{self.high} must be above 0, it is searched on a log scale"
            )
        if kind is int:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=log)
        return trial.suggest_float(self.name, float(self.low), float(self.high), log=log)


class _Trial:
    """Optuna's trial, with the overridden parameters suggested by the overrides."""

    def __init__(self, trial, overrides: dict[str, _Override], asked: set[str]):
        self._trial, self._overrides, self.asked = trial, overrides, asked

    def __getattr__(self, name: str):
        return getattr(self._trial, name)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False):
        self.asked.add(name)
        if name in self._overrides:
            return self._overrides[name].suggest(self._trial, float, log)
        return self._trial.suggest_float(name, low, high, step=step, log=log)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False):
        self.asked.add(name)
        if name in self._overrides:
            return self._overrides[name].suggest(self._trial, int, log)
        return self._trial.suggest_int(name, low, high, step=step, log=log)

    def suggest_categorical(self, name: str, choices):
        self.asked.add(name)
        if name in self._overrides:
            return self._overrides[name].suggest(self._trial)
        return self._trial.suggest_categorical(name, choices)


def _random_study(seed: int):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def _collect(make: Callable[[], Any], problems: list[str]) -> None:
    try:
        make()
    except InputError as error:
        problems += error.problems


def _near(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=2)
    return f"; did you mean {' or '.join(near)}?" if near else f"; it suggests {', '.join(sorted(known))}"
