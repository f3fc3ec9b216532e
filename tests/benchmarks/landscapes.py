"""Searches of `spaces/vit_to_mlp.py` over synthetic landscapes, on a virtual clock; what the two benchmarks share."""

import warnings
from pathlib import Path
from typing import Any

import optuna

from search.earlier import EarlierStudy, recorded_trial
from search.landscape import CEILING, Synthetic
from search.ledger import COMPLETE, PRUNED
from search.objective import parse_objectives
from search.settings import Settings, resolve
from search.space_file import load_space
from search.virtual import Virtual, simulate_study, study_parts
from search.warm_start import take_over
from trainables.config import TrialConfig

SPACE = Path(__file__).parents[2] / "spaces" / "vit_to_mlp.py"
EPOCHS, SLOTS = 27, 4
FULL_TRIALS = 64  # the budget, in trials of full length: the space's own number for CIFAR-100


class Search:
    """The space, read once; the landscapes and seeds change from run to run."""

    def __init__(self):
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.study = load_space(str(SPACE))

    def run(self, repeat: int, shift: float = 0.0, full_trials: int = FULL_TRIALS, **fields: Any) -> Virtual:
        """One search, from nothing, of a landscape and with a seed of that number.

        Args:
            repeat: draws the landscape, and is the search's seed where the fields give none.
            shift: of the landscape's optimum.
            full_trials: the search ends once so many trials' epochs are trained.
            fields: of the settings.
        """
        settings = self._settings(full_trials, **{"seed": repeat, **fields})
        space, compose = study_parts(settings, self.study)
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # samplers tell of each conditional parameter
        return simulate_study(
            settings,
            space,
            compose,
            Synthetic(shift, variant=repeat),
            parse_objectives(settings.objectives),
            slots=SLOTS,
            stop=lambda state: "out of epochs" if state.epochs >= EPOCHS * full_trials else None,
        )

    def warm_guesses(self, earlier: Virtual) -> list[dict[str, Any]]:
        """What a study on other data takes from that one by `--warm-start`."""
        ended = [record for record in earlier.ledger.of_role("trial") if record.state in (COMPLETE, PRUNED)]
        records = [recorded_trial(record) for record in ended if not record.cut_off]
        told = EarlierStudy("earlier", ended[0].objectives, {}, records)
        settings = self._settings(FULL_TRIALS)
        space, compose = study_parts(settings, self.study)
        return take_over([told], space, lambda fields: TrialConfig(**compose(fields)), settings, "other").guesses

    def _settings(self, full_trials: int, **fields: Any) -> Settings:
        given = {
            "name": "virtual",
            "space": str(SPACE),
            "trials": 100 * full_trials,
            "epochs": EPOCHS,
            "first_guesses": [],
            "simulate": "synthetic",
            **fields,
        }
        return resolve(self.study, given, [])


def regret(record, repeat: int, shift: float = 0.0) -> float:
    """How many points the record's configuration ends below the landscape's optimum, without noise."""
    return CEILING - Synthetic(shift, variant=repeat).final(record.config, record.params)
