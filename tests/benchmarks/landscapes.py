"""Searches of `spaces/vit_to_mlp.py` over synthetic landscapes, on a virtual clock; what the two benchmarks share."""

import warnings
from pathlib import Path
from typing import Any

import optuna

from search.landscape import CEILING, Synthetic
from search.objective import parse_objectives
from search.settings import load_space, resolve
from search.virtual import Virtual, simulate_study, study_parts

SPACE = Path(__file__).parents[2] / "spaces" / "vit_to_mlp.py"
EPOCHS, GRACE, SLOTS = 27, 3, 4
FULL_TRIALS = 64  # the budget, in trials of full length: the space's own number for CIFAR-100


class Search:
    """The space, read once; the landscapes and seeds change from run to run."""

    def __init__(self):
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # samplers tell of each conditional parameter
        self.study = load_space(str(SPACE))

    def run(self, repeat: int, shift: float = 0.0, full_trials: int = FULL_TRIALS, **fields: Any) -> Virtual:
        """One search, from nothing, of a landscape and with a seed of that number.

        Args:
            repeat: draws the landscape, and is the search's seed.
            shift: of the landscape's optimum.
            full_trials: the search ends once so many trials' epochs are trained.
            fields: of the settings.
        """
        given = {
            "name": "virtual",
            "space": str(SPACE),
            "trials": 100 * full_trials,
            "seed": repeat,
            "epochs": EPOCHS,
            "grace_epochs": GRACE,
            "first_guesses": [],
            "simulate": "synthetic",
            **fields,
        }
        settings = resolve(self.study, given, [])
        space, compose = study_parts(settings, self.study)
        return simulate_study(
            settings,
            space,
            compose,
            Synthetic(shift, variant=repeat),
            parse_objectives(settings.objectives),
            slots=SLOTS,
            stop=lambda state: "out of epochs" if state.epochs >= EPOCHS * full_trials else None,
        )


def regret(record, repeat: int, shift: float = 0.0) -> float:
    """How many points the record's configuration ends below the landscape's optimum, without noise."""
    return CEILING - Synthetic(shift, variant=repeat).final(record.config, record.params)
