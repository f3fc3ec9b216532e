"""Earlier studies, read for one that starts warm from them.

A study is found by its name in the tracking store, whichever machine it ran on; one whose runs were written before they
told what was searched is read from its folder in the storage.
"""

import difflib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.ledger import COMPLETE, PRUNED, Ledger, cut_off
from search.objective import TOP1
from search.resume import STARTED, comparable, stays_of
from search.tracking.credentials import shown
from search.tracking.facts import as_text, flat_params, joined_tag
from search.tracking.store import connect, first_line, store_exists, unreachable
from trainables.errors import InputError

PAGE = 1000  # runs a request


@dataclass
class EarlierTrial:
    """A trial of an earlier study that ended complete or was stopped early; what a budget cut off tells too little."""

    trial_id: str
    state: str
    params: dict[str, Any]  # what was searched, by Optuna's names
    metrics: dict[str, float]  # the latest of each
    config: dict[str, str]  # its configuration as MLflow shows it
    curve: Callable[[str], dict[int, float]]  # a metric's values by epoch


@dataclass
class EarlierStudy:
    """An earlier study, and what decides whether its results can be compared with another one's."""

    name: str
    objectives: dict[str, bool]  # metric: whether more is better
    facts: dict[str, Any]  # pair, data_fingerprint, epochs, comparable
    trials: list[EarlierTrial]

    def complete(self) -> list[EarlierTrial]:
        """The complete trials, best first by the study's own first objective."""
        metric, maximize = next(iter(self.objectives.items()))
        known = [trial for trial in self.trials if trial.state == COMPLETE and metric in trial.metrics]
        return sorted(known, key=lambda trial: trial.metrics[metric], reverse=maximize)


def read_studies(names: Iterable[str], uri: str, storage: Path) -> list[EarlierStudy]:
    """Earlier studies by name, or by the record of their best trial.

    Args:
        names: of studies, or paths of records that `search/export.py --to json` wrote.
        uri: MLflow's tracking URI.
        storage: the folder of the studies of this machine.

    Raises:
        InputError: one line for each that is not there or has no complete trial, or the store refuses.
    """
    studies, problems = [], []
    for name in dict.fromkeys(names):
        if name.endswith(".json"):
            try:
                studies.append(read_record(Path(name)))
            except InputError as error:
                problems += error.problems
            continue
        study = _find(name, uri, storage)
        if study is None:
            known = sorted({path.parent.name for path in storage.glob(f"*/{STARTED}")} | set(_experiments(uri)))
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known[-5:])}"
            where = f"in MLflow at {shown(uri)} or in {storage}"
            problems.append(f"--warm-start: there is no study '{name}' {where}{hint if known else ''}")
        elif not study.complete():
            problems.append(f"--warm-start: study '{name}' has no complete trial")
        else:
            studies.append(study)
    if problems:
        raise InputError(problems)
    return studies


def read_record(path: Path) -> EarlierStudy:
    """A study of which one trial is known, by its canonical record.

    Raises:
        InputError: the file is missing, or no such record.
    """
    try:
        record = json.loads(path.read_text())
        config = {name: as_text(value) for name, value in flat_params(record["config"]).items()}
        metrics, name = {TOP1: float(record["val_top1"])}, str(record["study"])
        trial = EarlierTrial(str(record["trial"]), COMPLETE, dict(record["searched"]), metrics, config, lambda _: {})
    except OSError as error:
        raise InputError(f"--warm-start: {path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--warm-start: {path} is no record of a trial; search/export.py --to json writes one"
        ) from error
    facts = {"pair": f"{config.get('teacher')} -> {config.get('student')}", "epochs": config.get("epochs")}
    return EarlierStudy(name, {TOP1: True}, facts | {"data_fingerprint": record.get("data_fingerprint")}, [trial])


def _find(name: str, uri: str, storage: Path) -> EarlierStudy | None:
    """The study in the tracking store; in the storage where its runs do not tell what was searched."""
    tracked, told = _from_tracking(name, uri)
    if tracked and told:
        return tracked
    return _from_storage(name, storage) or tracked


def _from_tracking(name: str, uri: str) -> tuple[EarlierStudy | None, bool]:
    """The study by its runs, and whether each run of a trial that ended tells what was searched."""
    if not store_exists(uri):
        return None, False
    try:
        client = connect(uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage == "deleted":
            return None, False
        place = [experiment.experiment_id]
        parent = next(iter(client.search_runs(place, "tags.role = 'study'", max_results=1)), None)
        if parent is None:
            return None, False
        query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.role = 'trial'"
        runs, token = [], None
        while token is None or token:
            page = client.search_runs(place, query, max_results=PAGE, page_token=token)
            runs, token = runs + list(page), page.token or ""
        ended = [run for run in runs if run.data.tags.get("state") in (COMPLETE, PRUNED)]
        ended = [run for run in ended if not cut_off(run.data.tags["state"], run.data.tags.get("reason", ""))]
        told = [(run, text) for run in ended if (text := joined_tag(run.data.tags, "searched"))]
        trials = [_tracked_trial(client, run, json.loads(text)) for run, text in told]
    except Exception as error:  # each store and driver has its own
        raise unreachable(uri, first_line(error)) from error
    facts = {**parent.data.params, **parent.data.tags}
    objectives = json.loads(facts.get("objectives") or "null") or {TOP1: True}
    trials.sort(key=lambda trial: int(trial.trial_id))
    return EarlierStudy(name, objectives, facts, trials), len(told) == len(ended)


def _tracked_trial(client, run, params: dict[str, Any]) -> EarlierTrial:
    data = run.data

    def curve(metric: str) -> dict[int, float]:
        return {entry.step: entry.value for entry in client.get_metric_history(run.info.run_id, metric)}

    return EarlierTrial(data.tags["trial_id"], data.tags["state"], params, data.metrics, data.params, curve)


def _from_storage(name: str, storage: Path) -> EarlierStudy | None:
    folder = storage / name
    if not (folder / "trials").is_dir():
        return None
    records = [one for one in Ledger(folder / "trials").of_role("trial") if one.state in (COMPLETE, PRUNED)]
    records = [one for one in records if not one.cut_off]
    stays = stays_of(folder)
    facts = {**facts_of(stays), "comparable": comparable(stays)} if "data_fingerprint" in stays else {}
    objectives = records[0].objectives if records else {TOP1: True}
    return EarlierStudy(name, objectives, facts, [recorded_trial(record) for record in records])


def recorded_trial(record) -> EarlierTrial:
    """A study's own record as another one's that starts warm."""
    names = set().union(*record.history) if record.history else set()
    metrics = {name: record.metric(name) for name in names}
    config = {name: as_text(value) for name, value in flat_params(record.config).items()}

    def curve(metric: str) -> dict[int, float]:
        return {int(entry["epoch"]): entry[metric] for entry in record.history if metric in entry}

    return EarlierTrial(record.trial_id, record.state, record.params, metrics, config, curve)


def facts_of(stays: dict[str, Any]) -> dict[str, Any]:
    """What of it is told when two studies differ; the parent run has it in these names."""
    return {
        "pair": f"{stays.get('teacher')} -> {stays.get('student')}",
        "data_fingerprint": stays.get("data_fingerprint"),
        "epochs": stays.get("epochs"),
    }


def _experiments(uri: str) -> list[str]:
    if not store_exists(uri):
        return []
    try:
        return [one.name for one in connect(uri).search_experiments() if one.name != "Default"]
    except Exception as error:  # each store and driver has its own
        raise unreachable(uri, first_line(error)) from error
