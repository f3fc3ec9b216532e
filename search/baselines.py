"""A small search for each baseline, so that OFA-KD is not compared with an untuned rival."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.trial import TrialState

from search.journal_file import Journal
from search.ledger import COMPLETE, RUNNING, Ledger, TrialRecord
from search.replay import NOWHERE, as_in, replay
from search.samplers import make_sampler
from search.settings import Settings
from trainables.config import TrialConfig
from trainables.distillers import suggest

JOURNAL = "baselines.log"  # Optuna's, beside the study's own
STARTUP = 4  # results before TPE models them, that of the baseline as given among them: such a search is small
GIVEN = "given"  # user attribute of that one
LR_SPAN = 3.0  # the learning rate is searched from its own value over this to its own value times this


class BaselineSearch:
    """Tunes one baseline by TPE: its distiller's declared hyperparameters, and the learning rate.

    It begins with what the baseline as it was given has reached, where that is within these ranges. None of its trials
    is stopped early, so that they have the epochs of the trials that they are compared with.

    Args:
        folder: the study's folder.
        name: the baseline's.
        config: its whole configuration.
        trials: how many there are to be besides the baseline as it was given.
        seed: of the sampler.
        ledger: the study's records.
        check: raises where a whole configuration is not valid.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config: dict[str, Any],
        trials: int,
        seed: int,
        ledger: Ledger,
        check: Callable[[dict[str, Any]], Any],
    ):
        self.name, self._config, self._trials, self._ledger, self._check = name, config, trials, ledger, check
        self._study = optuna.create_study(
            study_name=name,
            storage=JournalStorage(Journal(folder / JOURNAL)),
            direction="maximize",
            sampler=make_sampler("tpe", seed, STARTUP),
            load_if_exists=True,
        )
        known = {record.number for record in self._records()}
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if trial.number not in known:
                self._study.tell(trial.number, state=TrialState.FAIL)
        for record in self._records():
            if record.state != RUNNING:
                self.tell(record)

    def left(self) -> int:
        """How many of its trials are still to begin."""
        return max(0, self._trials - len(self._records()))

    def next(self, objectives: dict[str, bool]) -> TrialRecord:
        """Its next trial."""
        self._tell_given()
        trial = self._study.ask()
        config = {**self._config, **tuned_fields(trial, self._config)}
        self._check(config)
        number = len(self._records()) + 1
        return TrialRecord(
            f"{self.name}-{number}", "baseline", config, trial.params, objectives, number=trial.number, of=self.name
        )

    def tell(self, record: TrialRecord) -> None:
        """Tells its sampler how one of its trials ended; a second time changes nothing."""
        trial = self._study.get_trials(deepcopy=False)[record.number]
        if trial.state.is_finished():
            return
        state = TrialState.COMPLETE if record.state == COMPLETE else TrialState.FAIL
        self._study.tell(record.number, record.score if record.state == COMPLETE else None, state=state)

    def _tell_given(self) -> None:
        """Tells its sampler, once, what the baseline as it was given has reached, if it is complete by now."""
        given = self._ledger.records.get(self.name)
        if given is None or given.state != COMPLETE:
            return
        if any(GIVEN in trial.user_attrs for trial in self._study.get_trials(deepcopy=False)):
            return
        _, ranges = replay(lambda trial: tuned_fields(trial, self._config), {})
        params = {name: as_in(one, given.config[name.partition("@")[0]]) for name, one in ranges.items()}
        if NOWHERE not in params.values():
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions=ranges, value=given.score, user_attrs={GIVEN: True}
                )
            )

    def _records(self) -> list[TrialRecord]:
        return [record for record in self._ledger.of_role("baseline") if record.of == self.name]


def baseline_searches(
    folder: Path, settings: Settings, configs: dict[str, dict[str, Any]], ledger: Ledger
) -> list[BaselineSearch]:
    """A search for each baseline, where this session or an earlier one asked for them.

    Args:
        folder: the study's.
        settings: `tune_baselines` and the seed.
        configs: by name, each baseline's whole configuration.
        ledger: the study's records.
    """
    if not settings.tune_baselines and not any(record.of for record in ledger.of_role("baseline")):
        return []
    return [
        BaselineSearch(
            folder,
            name,
            config,
            settings.tune_baselines,
            settings.seed + number,
            ledger,
            lambda one: TrialConfig(**one),
        )
        for number, (name, config) in enumerate(configs.items())
    ]


def tuned_fields(trial, config: dict[str, Any]) -> dict[str, Any]:
    """What a baseline's search draws: the ranges that its distiller declares, and the learning rate about its own."""
    lr = config["lr"]
    return {
        **suggest(trial, config["distiller"]),
        "lr": trial.suggest_float("lr", lr / LR_SPAN, lr * LR_SPAN, log=True),
    }
