"""Learning curves in place of training: made up, recorded by an earlier study, or of the user's own making.

A search over curves is the same search (searcher, scheduler, ledger, tracking); only nothing is trained.
"""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from search.ledger import COMPLETE, Ledger, TrialRecord
from search.objective import Objective
from trainables.errors import InputError

# (whole configuration, searched parameters, epochs, seed) -> a dict of metrics an epoch; see `check_curve`.
Curves = Callable[[dict[str, Any], dict[str, Any], int, int], list[dict[str, Any]]]
SYNTHETIC = "synthetic"
OFA = "ofa"  # the distiller of a configuration that names none
MEASURED = ("train/", "val/", "best/", "time/", "cost/")  # whatever else a curve has is not looked at


def make_curves(name: str, storage: Path) -> Curves:
    """The curves that the setting `simulate` names.

    Args:
        name: `synthetic` (see `search.landscape`), a study in the storage, or `package.module:function`.
        storage: the folder of all studies.

    Raises:
        InputError: there is no such study or function, or the study has no complete trial.
    """
    if name == SYNTHETIC:
        from search.landscape import Synthetic

        return Synthetic()
    if ":" in name:
        return _function(name)
    if not (storage / name / "trials").is_dir():
        known = f"'{SYNTHETIC}', a study's name, or package.module:function"
        raise InputError(f"simulate: '{name}' is no study in {storage}; give {known}")
    return Recorded(Ledger(storage / name / "trials"), name)


def check_curves(
    curves: Curves, drawn: list[tuple[dict[str, Any], dict[str, Any]]], objectives: list[Objective]
) -> None:
    """Tries curves on drawn trials until one has a curve; a trial without one will fail like one whose training does.

    Args:
        curves: what is tried.
        drawn: (configuration, parameters) of each.
        objectives: what every curve must report.

    Raises:
        InputError: none has a curve, or one is no curve (`check_curve`).
    """
    for config, params in drawn:
        try:
            curve = curves(config, params, config["epochs"], config["seed"])
        except InputError:
            raise
        except Exception as error:  # the user's own code may fail in any way
            failed = error
            continue
        return check_curve(curve, config["epochs"], objectives)
    raise InputError(f"simulate: it gives no curve for any of {len(drawn)} drawn trials: {_named(failed)}")


def check_curve(curve: Any, epochs: int, objectives: list[Objective]) -> None:
    """Whether a curve is one: a dict for each epoch with a number, which may be NaN, for every objective.

    Costs (`cost/...`) may be told in the first epoch alone. Other metrics may be missing, but must be numbers too.

    Raises:
        InputError: it is not.
    """
    if not isinstance(curve, list) or not all(isinstance(entry, dict) for entry in curve):
        raise InputError("simulate: a curve must be a list with one dict of metrics an epoch")
    if len(curve) < epochs:
        raise InputError(f"simulate: the curve has {len(curve)} epochs, and trials have {epochs}; add --epochs or less")
    for epoch, entry in enumerate(curve[:epochs], 1):
        for metric in (one.metric for one in objectives):
            if metric not in entry and (epoch == 1 or not metric.startswith("cost/")):
                raise InputError(
                    f"simulate: the curve has no '{metric}' in epoch {epoch}, which objectives name; add it"
                    + ("" if metric.startswith("cost/") else " at every epoch")
                )
        for metric, value in entry.items():
            if not isinstance(metric, str):
                raise InputError(f"simulate: the curve's {metric!r} in epoch {epoch} is no metric's name; give a text")
            if metric.startswith(MEASURED) and not _is_number(value):
                raise InputError(f"simulate: the curve's '{metric}' is {value!r} in epoch {epoch}; give a number")


class Recorded:
    """The curves of an earlier study: those of the nearest complete run of the same distiller, whatever the seed.

    Near is the root of the summed squares over all parameters: of numbers the difference over the recorded range (over
    its logarithm, where that spans a factor of ten), of choices, and of what only one of the two has, 1. What was
    searched gets the curve of what was searched, and a baseline as given that of one, where there are both; of equally
    near ones it is the one whose configuration differs in the fewest fields.

    Args:
        ledger: the earlier study's.
        name: the study's, for messages.

    Raises:
        InputError: no trial of it is complete.
    """

    def __init__(self, ledger: Ledger, name: str):
        self._name = name
        roles = {role: [one for one in ledger.of_role(role) if one.state == COMPLETE] for role in ("trial", "baseline")}
        self._runs = [*roles["trial"], *roles["baseline"]]
        if not roles["trial"]:
            raise InputError(f"simulate: study '{name}' has no complete trial whose curve could be taken")
        self._spans: dict[str, tuple[float, float]] = {}  # lowest and highest recorded value of each number
        for record in self._runs:
            for key, value in record.params.items():
                if _is_number(value):
                    low, high = self._spans.get(key, (value, value))
                    self._spans[key] = min(low, value), max(high, value)

    def replayed(self, baselines: dict[str, str]) -> str:
        """What is to be known of a study that takes these curves.

        Args:
            baselines: its baselines' distillers by their names.

        Raises:
            InputError: there is no run of a baseline's distiller.
        """
        if missing := [name for name, distiller in baselines.items() if not self._of(distiller)]:
            first, rest = missing[0], ",".join(name for name in baselines if name not in missing)
            raise InputError(
                f"baselines: study '{self._name}', which is replayed, has no complete run of '{first}''s distiller, "
                f"{baselines[first]}; leave it out: --set baselines=[{rest}]"
            )
        return (
            f"study {self._name} is replayed: each run gets the curve of the nearest recorded one, whatever its seed, "
            "so a final's deviations on the holdout are 0 and its tests mean nothing"
        )

    def nearest(self, config: dict[str, Any], params: dict[str, Any]) -> TrialRecord:
        """The record whose curve such a trial or baseline gets.

        Raises:
            LookupError: none has its distiller.
        """
        alike = self._of(config.get("distiller", OFA))
        if not alike:
            raise LookupError(f"study '{self._name}' has no complete run of distiller {config['distiller']}")
        searched = [record for record in alike if bool(record.params) == bool(params)]

        def away(record: TrialRecord) -> tuple[float, int]:
            differ = sum(key in config and config[key] != value for key, value in record.config.items())
            return self.distance(params, record.params), differ

        return min(searched or alike, key=away)

    def _of(self, distiller: str) -> list[TrialRecord]:
        return [record for record in self._runs if record.config.get("distiller", OFA) == distiller]

    def distance(self, one: dict[str, Any], other: dict[str, Any]) -> float:
        """How far two trials' parameters are apart."""
        return math.sqrt(sum(self._apart(key, one, other) ** 2 for key in one.keys() | other.keys()))

    def __call__(self, config: dict[str, Any], params: dict[str, Any], epochs: int, seed: int) -> list[dict[str, Any]]:
        """The nearest trial's metrics by epoch.

        Raises:
            InputError: it is shorter than that.
            LookupError: as `nearest`.
        """
        history = self.nearest(config, params).history
        if (there := len(history)) < epochs:
            raise InputError(
                f"simulate: trials of study '{self._name}' have {there} epochs; give --epochs {there} or less"
            )
        return [
            {key: value for key, value in entry.items() if not key.startswith("test/")} for entry in history[:epochs]
        ]

    def _apart(self, key: str, one: dict[str, Any], other: dict[str, Any]) -> float:
        if key not in one or key not in other:
            return 1.0
        a, b = one[key], other[key]
        if not (_is_number(a) and _is_number(b) and key in self._spans):
            return float(a != b)
        low, high = self._spans[key]
        if low > 0 and high / low >= 10 and min(a, b) > 0:
            return abs(math.log(a / b)) / math.log(high / low)
        return abs(a - b) / (high - low) if high > low else float(a != b)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _function(path: str) -> Curves:
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module does when it is imported
        raise InputError(f"simulate: '{path}' cannot be imported: {_named(error)}") from error
    if not callable(function):
        raise InputError(f"simulate: '{path}' is a {type(function).__name__}; give a function")
    return function


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
