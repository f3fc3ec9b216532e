"""Studies over learning curves: lanes that train nothing, and what preflight finds out without data and models."""

import hashlib
import logging
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search.curves import Curves, check_curve
from search.objective import TOP1, Objective
from search.recipes import family_recipe
from search.settings import Settings
from search.students import StudentFacts, Students
from trainables.errors import InputError

TAKE_WAIT_S = 5.0  # how long a lane waits at the broker before it asks again
CLASSES, HOLDOUT_IMAGES, TRAIN_IMAGES, TEST_IMAGES = 10, 2000, 20_000, 2000  # of the data that are not there
TEACHER_TOP1 = 86.0
QUIT_S = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NoData:
    """Stands where the data's splits would."""

    description: str
    fingerprint: str
    holdout: range = range(HOLDOUT_IMAGES)
    test: range = range(TEST_IMAGES)
    train: range = range(TRAIN_IMAGES)
    classes: tuple[str, ...] = tuple(str(number) for number in range(CLASSES))


class UnbuiltStudents(Students):
    """Takes every student for one with all four stages, of the settings' family, `token` where they name none."""

    def __init__(self, settings: Settings):
        super().__init__(settings, build=lambda _: None)

    def _look_at(self, settings: Settings) -> StudentFacts:
        family = "token" if settings.family == "auto" else settings.family
        recipe, full_length = family_recipe(settings.recipes, family, settings.epochs, settings.full_epochs)
        return StudentFacts(family, recipe | settings.recipe, full_length, [1, 2, 3, 4])


def without_models(settings: Settings, notes: list[str]) -> tuple[NoData, UnbuiltStudents]:
    """What stands in for the data and the students of a simulated study."""
    source = settings.simulate
    notes.append(f"simulated (simulate={source}): nothing is trained, no data are read and no model is built")
    return NoData(f"none, simulated by {source}", f"simulated:{source}"), UnbuiltStudents(settings)


class SimulatedLanes:
    """Lanes that answer each trial with its learning curve at once; the same to the study as `search.lanes.Lanes`.

    Args:
        broker: the broker's actor handle.
        count: how many lanes, a thread of this process each.
        curves: where the curves come from.
        objectives: what every curve must have.
    """

    def __init__(self, broker, count: int, curves: Curves, objectives: list[Objective]):
        self._broker, self._curves, self._objectives = broker, curves, objectives
        self.work, self._count = lambda: 1, count  # as real lanes are told; these are there all the time
        self._lost: dict[int, str] = {}
        self._threads = [
            threading.Thread(target=self._keep, args=(number,), name=f"lane-{number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        """Starts all lanes; returns at once."""
        for thread in self._threads:
            thread.start()

    def all_lost(self) -> str | None:
        """Why no lane is left, None while one is."""
        return "; ".join(self._lost.values()) if len(self._lost) == len(self._threads) else None

    def room(self) -> int:
        """For how many trials there is a lane."""
        return self._count

    def standing(self) -> list:
        """The lanes that may wait: none of these does."""
        return []

    def close(self) -> bool:
        """Waits for the lanes to quit (the broker was closed before); False where some did not in time."""
        for thread in self._threads:
            thread.join(QUIT_S)
        return not any(thread.is_alive() for thread in self._threads)

    def _keep(self, number: int) -> None:
        try:
            self._serve(number)
        except Exception as error:
            log.exception("lane %d ended", number)
            self._lost[number] = f"lane {number} was lost: {type(error).__name__}: {error}"

    def _serve(self, number: int) -> None:
        import ray

        while (job := ray.get(self._broker.take.remote(number, {"pid": os.getpid()}, TAKE_WAIT_S))) != "quit":
            if job is None:
                continue
            ticket = (job["trial_id"], job["attempt"])

            def report(metrics: dict[str, Any]) -> bool:
                return ray.get(self._broker.report.remote(*ticket, metrics))  # noqa: B023 - used within this turn

            ray.get(self._broker.finish.remote(*ticket, **play(job, self._curves, self._objectives, report)))


def play(job: dict[str, Any], curves: Curves, objectives: list[Objective], report) -> dict[str, Any]:
    """Answers one job as a lane's worker does (`trainables.lane`), with a curve in place of training.

    Args:
        job: as the broker hands it over; of a trial `config`, `params`, `known_epoch`, `folder`, `test`.
        curves: where the curve comes from.
        objectives: what it must have.
        report: takes an epoch's metrics and says whether to go on.

    Returns:
        The arguments of the broker's `finish`: `result` of a teacher, `error` and `bad_input` where it failed.
    """
    if job["kind"] == "teacher":
        return {"result": teacher_figures()}
    config = job["config"]
    try:
        curve = curves(config, job["params"], config["epochs"], config["seed"])
        check_curve(curve, config["epochs"], objectives)
    except InputError as error:
        return {"error": str(error), "bad_input": True}
    except Exception as error:  # the user's curve raised as training may
        return {"error": f"{type(error).__name__}: {error}"}
    for epoch, entry in enumerate(curve[: config["epochs"]], 1):
        for key, name in (("train/loss", "training"), ("val/loss", "holdout")):
            if not math.isfinite(entry.get(key, 0.0)):
                return {"error": f"the {name} loss is {entry[key]} in epoch {epoch}"}
        if epoch > job["known_epoch"]:
            plain = _plain(entry)
            tested = _tested(plain, job) if job["test"] and epoch == config["epochs"] else {}
            if not report({**plain, "epoch": epoch, **tested}):
                break
    return {}


def teacher_figures() -> dict[str, Any]:
    """What preparing a teacher gives (`trainables.teacher_job.prepare_teacher`), made up."""
    images = {"train": TRAIN_IMAGES, "teacher_train": TRAIN_IMAGES, "holdout": HOLDOUT_IMAGES, "test": TEST_IMAGES}
    return {
        "top1": TEACHER_TOP1,
        "loss": 0.6,
        "by_class": [TEACHER_TOP1] * CLASSES,
        "images": HOLDOUT_IMAGES,
        "classes": CLASSES,
        "class_counts": {part: [count // CLASSES] * CLASSES for part, count in images.items()},
        "sha256": "simulated",
        "epochs": 0,
    }


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """Without NumPy's numbers, which YAML cannot write."""
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in entry.items()}


def _tested(entry: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """The test split's figures: the holdout's, with predictions drawn to have its accuracy (`test.npz`), if told."""
    figures = {key.replace("val/", "test/"): value for key, value in entry.items() if key.startswith("val/")}
    if TOP1 not in entry:
        return figures
    random = np.random.default_rng(int(hashlib.sha256(job["trial_id"].encode()).hexdigest()[:8], 16))
    target = np.arange(TEST_IMAGES) % CLASSES
    right = random.random(TEST_IMAGES) < entry[TOP1] / 100
    predicted = np.where(right, target, (target + random.integers(1, CLASSES, TEST_IMAGES)) % CLASSES)
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "test.npz", target=target, predicted=predicted)
    return figures | {"test/top1": 100 * float(np.mean(predicted == target))}
