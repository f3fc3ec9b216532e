"""A study that is to end whole whatever happens to it, and what whole means."""

import json
from collections import Counter
from pathlib import Path

import optuna
import pandas
from mlflow import MlflowClient

from tests.search import studies

TRIALS, EPOCHS = 4, 10
BODY = 'return {"stages": [3, 4], "eps": trial.suggest_float("eps", 1.0, 2.0)}'


def write_space(folder: Path, trials: int = TRIALS, epochs: int = EPOCHS) -> str:
    """A fixed list of configurations, none of which is stopped early, and the student alone."""
    fields = (
        f"trials={trials}, epochs={epochs}, scheduler='none', labels_per_class=60, student='mixer_nano', "
        "student_kwargs={}, holdout=0.5"
    )
    return studies.write_space(folder, BODY, [{"eps": 1 + round(one / trials, 4)} for one in range(trials)], fields)


def records(folder: Path) -> dict[str, dict]:
    """The study's records as they are on disk now."""
    found = [json.loads(path.read_text()) for path in (folder / "runs" / "s" / "trials").glob("*/record.json")]
    return {record["trial_id"]: record for record in found}


def reported(folder: Path) -> int:
    """How many epochs all trials together have reported."""
    return sum(len(record["history"]) for record in records(folder).values())


def lost(folder: Path, trials: int = TRIALS, epochs: int = EPOCHS) -> list[str]:
    """What of the study's trials did not come to its end, with the reason."""
    found, wrong = records(folder), []
    for name in ["scratch", *map(str, range(trials))]:
        record = found.get(name, {"state": "missing", "reason": "", "history": []})
        told = [entry["epoch"] for entry in record["history"]]
        if record["state"] != "complete" or told != list(range(1, epochs + 1)):
            wrong.append(f"{name} is {record['state']} {record['reason']} with the epochs {told}")
    return wrong


def doubled(folder: Path, store: str) -> list[str]:
    """What Optuna, MLflow and trials.csv do not have exactly once, as the records have it.

    Args:
        store: MLflow's.
    """
    found, wrong = records(folder), []
    once = Counter(list(found))
    rows = Counter(pandas.read_csv(folder / "runs" / "s" / "trials.csv").trial_id.astype(str))
    if rows != once:
        wrong.append(f"trials.csv: {rows}")
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "runs" / "s" / "optuna.log"))
    told = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend)).trials
    numbers = Counter((trial.number, trial.state.name) for trial in told)
    if numbers != Counter((one["number"], "COMPLETE") for one in found.values() if one["role"] == "trial"):
        wrong.append(f"Optuna: {numbers}")
    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    trials = [run for run in runs if run.data.tags["role"] != "study"]
    if Counter(run.data.tags["trial_id"] for run in trials) != once:
        wrong.append(f"MLflow: {[run.data.tags['trial_id'] for run in trials]}")
    if {run.info.status for run in runs} != {"FINISHED"}:
        wrong.append(f"MLflow: {[run.info.status for run in runs]}")
    for run in trials:
        points = client.get_metric_history(run.info.run_id, "val/top1")
        name = run.data.tags["trial_id"]
        history = [(one["epoch"], one["val/top1"]) for one in found.get(name, {"history": []})["history"]]
        if sorted((one.step, one.value) for one in points) != history:
            wrong.append(f"MLflow: {name} has {len(points)} points")
    return wrong


def assert_whole(folder: Path, trials: int = TRIALS, epochs: int = EPOCHS) -> None:
    """Every trial complete and every epoch once, everywhere."""
    wrong = lost(folder, trials, epochs) + doubled(folder, f"sqlite:///{folder}/runs/mlflow.db")
    assert wrong == [], "; ".join(wrong)
