"""What MLflow's parent run is to hold, kept in the study's folder before MLflow is told.

With the trials' records (`search/ledger.py`) it is all that a study says to MLflow, so that whatever a server missed
can be written later, by the study itself or by `search/sync.py`, from nothing but the folder.
"""

import dataclasses
import json
import math
import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from search.tracking.facts import as_text
from trainables.errors import InputError

FILE = "tracking.json"
RUNNING = "RUNNING"  # MLflow's word, as FINISHED, FAILED and KILLED


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


@dataclass
class StudyRun:
    """The parent run as it is wanted; every change is on disk when the method that makes it returns."""

    folder: Path
    study: str
    study_id: str = field(default_factory=lambda: uuid.uuid4().hex)  # the experiment has it as a tag: it is ours
    adopts: bool = False  # the experiment is older than this file, so it has no such tag yet
    started: int = field(default_factory=now_ms)
    status: str = RUNNING
    ended: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[list[Any]] = field(default_factory=list)  # key, value, time in ms, step
    texts: dict[str, str] = field(default_factory=dict)  # artifacts by name, given as text
    artifacts: dict[str, int] = field(default_factory=dict)  # files of the folder, and when they were written
    experiment: dict[str, str] = field(default_factory=dict)  # the experiment's tags
    dataset: dict[str, Any] = field(default_factory=dict)  # see `search/tracking/dataset.py`
    best_model: int = 0  # when the folder's best student was written, which is logged as a model; 0: there is none

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The one of a study's folder; None where there is none.

        Raises:
            InputError: the file is broken.
        """
        path = Path(folder) / FILE
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"--study: {path} is broken ({error}); put it back as it was") from error
        known = {one.name for one in dataclasses.fields(cls)}
        return cls(Path(folder), **{key: value for key, value in content.items() if key in known})

    def begin(self, tags: dict[str, Any], params: dict[str, Any], texts: dict[str, str]) -> None:
        """A session's facts. MLflow's params are final, so one that changed becomes the tag `resumed/NAME`."""
        told = {name: as_text(value) for name, value in params.items()}
        changed = {f"resumed/{name}": text for name, text in told.items() if self.params.get(name, text) != text}
        self.params = told | self.params
        self.tags |= {name: as_text(value) for name, value in (tags | changed).items()}
        self.texts |= texts
        self.status, self.ended = RUNNING, None
        self.save()

    def set_tags(self, tags: dict[str, Any]) -> None:
        self.tags |= {name: as_text(value) for name, value in tags.items()}
        self.save()

    def add_metric(self, key: str, value: float, step: int) -> None:
        """A number of the whole study; one that was told before (by an earlier session) is no new point."""
        last = next((entry for entry in reversed(self.metrics) if entry[0] == key and entry[3] == step), None)
        if math.isfinite(value) and (last is None or last[1] != value):
            self.metrics.append([key, value, now_ms(), step])
            self.save()

    def add_artifact(self, path: Path) -> None:
        """A file of the study's folder; it is read when it is written to MLflow."""
        self.artifacts[str(Path(path).relative_to(self.folder))] = now_ms()
        self.save()

    def set_best_model(self) -> None:
        """The folder's best student is to be logged and registered."""
        self.best_model = now_ms()
        self.save()

    def end(self, status: str) -> None:
        """Args: status: FINISHED, FAILED or KILLED."""
        self.status, self.ended = status, now_ms()
        self.save()

    def save(self) -> None:
        """Writes the file whole or not at all."""
        content = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "folder"}
        partial = self.folder / f"{FILE}.partial"
        partial.write_text(json.dumps(content, indent=1))
        os.replace(partial, self.folder / FILE)
