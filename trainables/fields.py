"""What settings are made of: strict pydantic models, and ranges to search. Imports no torch."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """No unknown field, no silent conversion, no NaN; immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Range:
    """Where a hyperparameter is searched: a range of numbers, or choices.

    Args:
        low, high: bounds, both included; two ints make an integer.
        log: sampled on a logarithmic scale.
        choices: instead of bounds.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple = ()

    def suggest(self, trial, name: str) -> Any:
        """Draws a value from an Optuna trial under that name."""
        if self.choices:
            return trial.suggest_categorical(name, list(self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def __contains__(self, value: Any) -> bool:
        return value in self.choices if self.choices else self.low <= value <= self.high
