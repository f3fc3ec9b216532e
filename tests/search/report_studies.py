"""A study's folder as a session leaves it, made by hand: records, Optuna's journal, settings, teacher, predictions."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
import yaml

from search.ledger import Ledger, TrialRecord
from search.objective import parse_objectives
from search.optuna_study import open_study, tell
from search.resume import STARTED
from search.settings import Settings

NAME, EPOCHS, SHA = "mine", 9, "abc"
DISTILLED = {"epochs": EPOCHS, "distiller": "ofa", "stages": [1, 2], "eps": 1.5, "temperature": 2.0, "seed": 0}
COSTS = {"cost/branch_params": 1e6, "cost/branch_flops": 2e6, "cost/student_params": 3e6, "cost/student_flops": 4e6}

optuna.logging.set_verbosity(optuna.logging.WARNING)


def curve(record: TrialRecord, values: list[float], **last: float) -> TrialRecord:
    """Gives a record an epoch for each value of its first objective; `last` is added to the last one."""
    for epoch, value in enumerate(values, 1):
        entry = {"epoch": epoch, record.objective: value, "time/epoch_s": 60.0, "time/trained_s": 60.0 * epoch}
        record.add(entry | (COSTS if epoch == 1 else {}) | (last if epoch == len(values) else {}))
    return record


def rising(final: float) -> list[float]:
    """A learning curve to this value."""
    return [final * (0.5 + 0.5 * epoch / EPOCHS) for epoch in range(1, EPOCHS + 1)]


class Made:
    """A study in `storage`, to which records are added one by one.

    Args:
        storage: where it lies.
        priors: other studies' trials that Optuna's begins with.
        fields: of its settings.
    """

    def __init__(self, storage: Path, priors: Sequence[optuna.trial.FrozenTrial] = (), **fields):
        fields = {"trials": 6, "epochs": EPOCHS, "grace_epochs": 1, "concurrency": 2} | fields
        models = {"teacher": "vit_tiny_patch16_224", "student": "mixer_nano", "data": "digits"}
        self.settings = Settings(name=NAME, space="spaces/vit_to_mlp.py", **models, **fields)
        self.storage, self.folder, self.priors = storage, storage / NAME, len(priors)
        self.ledger = Ledger(self.folder / "trials")
        found = parse_objectives(self.settings.objectives)
        self.objectives = {objective.metric: objective.maximize for objective in found}
        self.study = open_study(self.folder, NAME, "random", 0, found, priors=priors)
        (self.folder / "settings.yaml").write_text(yaml.safe_dump(self.settings.model_dump()))
        started = {"space": "spaces/vit_to_mlp.py", "flags": {"name": NAME, "smoke": True}, "set": ["eps=a b"]}
        (self.folder / STARTED).write_text(json.dumps(started))

    def trial(self, values: list[float], error: str | None = None, **last: float) -> TrialRecord:
        """A trial with this curve, told to Optuna; every second one has a conditional parameter."""
        asked = self.study.ask()
        params = {"eps": asked.suggest_float("eps", 0.8, 2.5), "stage1": asked.suggest_categorical("stage1", [0, 1])}
        if asked.number % 2:
            params["eps_stage1"] = asked.suggest_float("eps_stage1", 0.8, 2.5)
        trial_id = str(asked.number - self.priors)
        record = TrialRecord(trial_id, "trial", dict(DISTILLED), params, self.objectives, asked.number)
        curve(record, values, **last).finish(error)
        self.ledger.save(record)
        tell(self.study, record)
        return record

    def baseline(self, name: str, values: list[float], **last: float) -> TrialRecord:
        record = TrialRecord(name, "baseline", {**DISTILLED, "distiller": "none", "stages": []}, {}, self.objectives)
        curve(record, values, **last).finish()
        self.ledger.save(record)
        return record

    def final(self, of: str, tests: list[float | None], right: int = 80) -> None:
        """A run a seed, with its test figure and its predictions; None is a run that failed."""
        for seed, test in enumerate(tests, 1):
            record = TrialRecord(
                f"{of}-seed{seed}", "finalist", {**DISTILLED, "seed": seed}, {}, self.objectives, of=of
            )
            metric = record.objective.replace("val/", "test/")
            curve(record, rising(test) if test else [], **({metric: test} if test else {}))
            record.finish(None if test else "the machine went away")
            self.ledger.save(record)
            predicted = np.arange(100) >= right  # right is class 0
            target = np.zeros(100, dtype=np.int64)
            np.savez(self.ledger.trial_folder(record.trial_id) / "test.npz", target=target, predicted=predicted * 1)

    def teacher(self, **more) -> None:
        """The teacher's figures and further ones, and the `best.yaml` that names it."""
        kept = self.storage / "teachers" / "fingerprint"
        kept.mkdir(parents=True)
        about = {"top1": 97.5, "loss": 0.1, "images": 404, "sha256": SHA, "classes": 3, "epochs": 2, **more}
        (kept / "teacher.json").write_text(json.dumps(about))
        (self.folder / "best.yaml").write_text(yaml.safe_dump({"teacher_sha256": SHA, "holdout_images": 404}))

    def account(self, *told: dict) -> None:
        """An account of two sessions, of which the second was ended by its budget; `told` are more of their fields."""
        phases = {"start-up": 10.0, "teacher": 30.0, "search": 600.0, "finalists": 300.0, "results": 5.0}
        held = {"teacher": 30.0, "search": 1000.0, "finalists": 500.0}
        sessions = [{"wall_s": phases, "held_s": held}, {"wall_s": {"search": 60.0}, "held_s": {"search": 120.0}}]
        sessions = [one | more for one, more in itertools.zip_longest(sessions, told, fillvalue={})]
        content = {"sessions": sessions, "lost_epochs": 2, "ended_by": "the time budget of 900 s"}
        (self.folder / "account.json").write_text(json.dumps(content))

    def read_account(self) -> dict:
        return json.loads((self.folder / "account.json").read_text())


def mixed(storage: Path, **fields) -> Made:
    """Five complete trials, one pruned, one failed with a reason that looks like HTML, one with NaN; two baselines."""
    made = Made(storage, **fields)
    seconds = {"val/loss": 0.5, "val/agreement": 88.0}
    for value in (70.0, 75.0, 72.0, 80.0, 78.0):
        made.trial(rising(value), **seconds)
    made.trial(rising(60.0)[:3], **seconds)
    made.trial(rising(50.0)[:2], error="CUDA <b>out</b> of memory | really", **seconds)
    made.trial([*rising(50.0)[:-1], math.nan], **seconds)
    made.baseline("scratch", rising(65.0), **seconds)
    made.baseline("kd", rising(74.0), **seconds)
    return made
