"""The study's parent run in MLflow, and the pages of its experiment."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from search.tracking.best_model import log_best_model
from search.tracking.dataset import dataset_inputs
from search.tracking.facts import as_text
from search.tracking.page import HERE, NOTE
from search.tracking.study_run import RUNNING as OPEN
from search.tracking.study_run import StudyRun

MOST_METRICS = 800  # a request; MLflow takes 1000 metrics, params and tags together
NO_MODEL = "no_best_model"  # the tag that says why the best student is no model


@dataclass(slots=True)
class _Written:
    """What of the parent run is known to be on the server."""

    experiment: dict[str, str] = field(default_factory=dict)  # the experiment's tags
    params: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, int] = field(default_factory=dict)
    dataset: bool = False
    best_model: int = 0
    status: str = OPEN


class Parent:
    """Writes what a parent run lacks of what is wanted; each part alone, so that a refused one holds up no other.

    Args:
        client: an `MlflowClient`.
        experiment_id, experiment_tags: the study's experiment, as it is there.
        run: its parent run, as it is there.
        folder: the study's.
    """

    def __init__(self, client, experiment_id: str, experiment_tags: Mapping[str, str], run, folder: Path):
        self._client, self._experiment_id, self._folder = client, experiment_id, folder
        self._run_id = run.info.run_id
        known = dict(experiment_tags), set(run.data.params), dict(run.data.tags)
        self._written = _Written(*known, status=run.info.status)

    def steps(self, wanted: StudyRun) -> Iterator[Callable[[], str | None]]:
        """The parts but for the end, in order; what one returns is why the best student is no model."""
        yield partial(self._write_numbers, wanted)
        yield partial(self._write_page, wanted)
        yield partial(self._write_dataset, wanted)
        for name, text in wanted.texts.items():
            yield partial(self._write_text, name, text)
        for name, when in wanted.artifacts.items():
            yield partial(self._write_artifact, name, when)
        yield partial(self._write_model, wanted)

    def end(self, wanted: StudyRun) -> None:
        """Gives the run its status."""
        if wanted.status not in (OPEN, self._written.status):
            self._client.set_terminated(self._run_id, wanted.status, wanted.ended)
            self._written.status = wanted.status

    def _write_numbers(self, wanted: StudyRun) -> None:
        there = self._written
        if there.status != OPEN and wanted.status == OPEN:
            self._client.update_run(self._run_id, status=OPEN)
            there.status = OPEN
        params = {name: value for name, value in wanted.params.items() if name not in there.params}
        tags = {name: value for name, value in wanted.tags.items() if there.tags.get(name) != value}
        metrics = [tuple(entry) for entry in wanted.metrics[there.metrics :]]
        if params or tags or metrics:
            log_batch(self._client, self._run_id, metrics, params, tags)
            there.params |= set(params)
            there.tags |= tags
            there.metrics = len(wanted.metrics)

    def _write_page(self, wanted: StudyRun) -> None:
        there = self._written.experiment
        for name, text in wanted.experiment.items():
            value = text.replace(HERE, self._experiment_id)
            if there.get(name) != value and not (name == NOTE and name in there):  # which a person may have edited
                self._client.set_experiment_tag(self._experiment_id, name, value)
                there[name] = value

    def _write_dataset(self, wanted: StudyRun) -> None:
        if not self._written.dataset and (inputs := dataset_inputs(wanted.dataset)):
            self._client.log_inputs(self._run_id, inputs)
            self._written.dataset = True

    def _write_text(self, name: str, text: str) -> None:
        if self._written.texts.get(name) != text:
            self._client.log_text(self._run_id, text, name)
            self._written.texts[name] = text

    def _write_artifact(self, name: str, when: int) -> None:
        if self._written.artifacts.get(name) != when and (self._folder / name).exists():
            self._client.log_artifact(self._run_id, str(self._folder / name))
            self._written.artifacts[name] = when

    def _write_model(self, wanted: StudyRun) -> str | None:
        if self._written.best_model == wanted.best_model:
            return None
        classes = wanted.dataset.get("classes", [])
        problem = log_best_model(self._client, self._run_id, wanted.study, self._folder, classes)
        if problem:
            self._client.set_tag(self._run_id, NO_MODEL, problem)
        elif NO_MODEL in self._written.tags:
            self._client.delete_tag(self._run_id, NO_MODEL)
        self._written.best_model = wanted.best_model
        return problem


def log_batch(client, run_id: str, metrics: list[tuple], params: dict[str, Any], tags: dict[str, Any]) -> None:
    """As MLflow's, with plain values, in as many requests as it takes; params and tags come with the last."""
    from mlflow.entities import Metric, Param, RunTag

    entities = [Metric(*entry) for entry in metrics]
    while len(entities) > MOST_METRICS:
        client.log_batch(run_id, entities[:MOST_METRICS])
        entities = entities[MOST_METRICS:]
    client.log_batch(
        run_id,
        entities,
        [Param(key, as_text(value)) for key, value in params.items()],
        [RunTag(key, as_text(value)) for key, value in tags.items()],
    )
