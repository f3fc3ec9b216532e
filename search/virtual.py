"""A study on a virtual clock: the real searcher, scheduler and ledger, but neither Ray's processes nor training.

Hundreds of studies run in minutes, and the same seed gives the same study: for benchmarks and regression tests.
"""

import contextlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from ray.tune.schedulers import TrialScheduler

from search.curves import Curves
from search.ledger import COMPLETE, Ledger, TrialRecord
from search.objective import Objective
from search.optuna_study import open_study, tell
from search.samplers import make_sampler
from search.schedulers import make_scheduler
from search.searcher import StudySearcher
from search.settings import Settings, pinned_fields
from search.simulation import UnbuiltStudents, play
from search.space import SearchSpace
from search.tracking.tracker import Tracker


class MemoryLedger(Ledger):
    """A ledger that writes nothing."""

    def __init__(self):
        self.folder, self.records = Path("nowhere"), {}

    def save(self, record: TrialRecord) -> None:
        """Keeps the record in memory."""
        self.records[record.trial_id] = record


@dataclass
class Virtual:
    """A study on the virtual clock, as it stands at some time, or at its end.

    Attributes:
        ledger: its records.
        study: Optuna's.
        seconds: of the virtual clock.
        own_s: those of them that the driver itself took.
        epochs: trained so far by all trials together.
        ended: (seconds, epochs trained by then, record) of each trial that ended, in that order.
        reason: what ended the search, "" where all its trials were run.
    """

    ledger: Ledger
    study: optuna.Study
    seconds: float = 0.0
    own_s: float = 0.0
    epochs: int = 0
    ended: list[tuple[float, int, TrialRecord]] = field(default_factory=list)
    reason: str = ""

    def best(self) -> TrialRecord | None:
        """The complete trial with the best last value."""
        return self.ledger.best()

    def incumbents(self) -> Iterator[tuple[int, TrialRecord]]:
        """Each complete trial that was the best when it ended, with the epochs that all had trained by then."""
        best = None
        for _, epochs, record in self.ended:
            if record.role == "trial" and record.state == COMPLETE and (best is None or record.score > best.score):
                best = record
                yield epochs, record


def simulate_study(
    settings: Settings,
    space: Callable[[Any], dict[str, Any]],
    compose: Callable[[dict[str, Any]], dict[str, Any]],
    curves: Curves,
    objectives: list[Objective],
    *,
    slots: int = 1,
    folder: Path | None = None,
    baselines: dict[str, dict[str, Any]] | None = None,
    stop: Callable[[Virtual], str | None] = lambda state: None,
    tracker: Tracker | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> Virtual:
    """Runs a study's search over curves; an epoch takes its curve's `time/epoch_s` on the virtual clock (1 without).

    The driver's own work takes none of it, or with `clock=time.perf_counter` as long as it really takes, one thing
    after another: what is reported while it is busy waits, and a trial's next epoch begins with the verdict on its last
    one. Making the curves stands for the lanes' work and is never counted.

    Args:
        settings: sampler, scheduler, their fields, `trials`, `epochs`, `seed` and `first_guesses` count.
        space: gives a trial's fields.
        compose: makes a whole configuration of them.
        curves: where each trial's metrics come from.
        objectives: as in a real study.
        slots: trials side by side.
        folder: where ledger and Optuna's journal lie, which go on where they were left; None keeps both in memory.
        baselines: whole configurations by name, trained first.
        stop: asked after each epoch; the reason to end the search, which cuts off what is running.
        tracker: an open one, told of each change as in a real study.
        clock: what the driver's own work is timed by, in seconds.

    Returns:
        The study at its end.
    """
    state = _opened(settings, objectives, folder)
    driver = _Driver(settings, space, compose, curves, objectives, baselines or {}, state, tracker, clock)
    return driver.run(slots, stop)


def _opened(settings: Settings, objectives: list[Objective], folder: Path | None) -> Virtual:
    if folder:
        study = open_study(folder, settings.name, settings.sampler, settings.seed, objectives)
        state = Virtual(Ledger(folder / "trials"), study)
    else:
        directions = [objective.direction for objective in objectives]
        state = Virtual(
            MemoryLedger(),
            optuna.create_study(directions=directions, sampler=make_sampler(settings.sampler, settings.seed)),
        )
    if not state.study.get_trials(deepcopy=False):
        for guess in settings.first_guesses[: settings.trials]:
            state.study.enqueue_trial(guess)
    return state


class _Driver:
    """What Tune's loop is in a real study: starts trials in free slots and brings their results in order of time."""

    def __init__(self, settings, space, compose, curves, objectives, baselines, state: Virtual, tracker, clock):
        self._curves, self._objectives, self._state = curves, objectives, state
        self._tracker, self._clock = tracker, clock
        self._failed: dict[str, str] = {}
        self._searcher = StudySearcher(
            state.study,
            space,
            compose,
            baselines,
            [],
            None,
            state.ledger,
            lambda record: None,
            lambda trial_id: self._failed[trial_id],
            {objective.metric: objective.maximize for objective in objectives},
        )
        self._scheduler = make_scheduler(settings, state.ledger, objectives[0])
        self._left = max(0, self._searcher.left(settings.trials))
        self._started = 0

    def run(self, slots: int, stop: Callable[[Virtual], str | None]) -> Virtual:
        """To the end, or until `stop` gives a reason."""
        state = self._state
        running: list = []  # a heap of (time of the next event, order of starting, trial, reports to come)
        while True:
            while len(running) < slots and self._left:
                self._begin(running)
            if not running:
                return state
            at, order, trial, events = heapq.heappop(running)
            state.seconds = max(state.seconds, at)
            with self._at_work():
                goes_on = self._advance(trial, events)
            if not goes_on:
                continue
            if reason := stop(state):
                state.reason = reason
                for _, _, one, _ in [*running, (0, order, trial, events)]:
                    self._cut_off(one, reason)
                return state
            heapq.heappush(running, (state.seconds + _duration(events), order, trial, events))

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        began = self._clock()
        yield
        took = self._clock() - began
        self._state.seconds += took
        self._state.own_s += took

    def _begin(self, running: list) -> None:
        name = f"virtual_{self._started:05}"
        self._left -= 1
        with self._at_work():
            config = self._searcher.suggest(name)
            trial = _Trial(trial_id=name, config=config, last_result={})
            self._scheduler.on_trial_add(None, trial)
            if self._tracker:
                self._tracker.trial_started(self._record(trial))
        events: list[dict[str, Any]] = []
        job = self._job(self._record(trial))
        outcome = play(job, self._curves, self._objectives, lambda metrics: events.append(metrics) or True)
        if "error" in outcome:
            self._failed[config["trial_id"]] = outcome["error"]
        heapq.heappush(running, (self._state.seconds + _duration(events), self._started, trial, events))
        self._started += 1

    def _advance(self, trial, events: list[dict[str, Any]]) -> bool:
        """Brings a trial's next report; whether it goes on."""
        state, record = self._state, self._record(trial)
        error = record.trial_id in self._failed
        if not events:
            return self._end(trial, error)
        metrics = events.pop(0)
        state.epochs += 1
        if record.add(metrics):
            state.ledger.save(record)
            self._changed(record)
        trial.last_result = metrics
        if self._scheduler.on_trial_result(None, trial, metrics) == TrialScheduler.STOP:
            return self._end(trial, False)
        return True if events or error else self._end(trial, False)

    def _end(self, trial, error: bool) -> bool:
        record = self._record(trial)
        if error:
            self._scheduler.on_trial_error(None, trial)
        else:
            self._scheduler.on_trial_complete(None, trial, trial.last_result)
        self._searcher.on_trial_complete(trial.trial_id, trial.last_result, error=error)
        self._changed(record)
        self._state.ended.append((self._state.seconds, self._state.epochs, record))
        return False

    def _cut_off(self, trial, reason: str) -> None:
        record = self._record(trial)
        record.finish(stopped=reason)
        self._state.ledger.save(record)
        self._changed(record)
        if record.role == "trial":
            tell(self._state.study, record)

    def _changed(self, record: TrialRecord) -> None:
        if self._tracker:
            self._tracker.trial_changed(record)

    def _job(self, record: TrialRecord) -> dict[str, Any]:
        return {
            "kind": "trial",
            "config": record.config,
            "params": record.params,
            "known_epoch": record.epoch,
            "test": False,
        }

    def _record(self, trial) -> TrialRecord:
        return self._state.ledger.records[trial.config["trial_id"]]


class _Trial(SimpleNamespace):
    """What Ray's schedulers ask of Tune's trial: an id, the configuration, and to be a key."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def _duration(events: list[dict[str, Any]]) -> float:
    """Seconds until a trial's next event; one that fails before its next report does so at once."""
    return events[0].get("time/epoch_s", 1.0) if events else 0.0


def study_parts(settings: Settings, study) -> tuple[Any, Callable[[dict[str, Any]], dict[str, Any]]]:
    """The search space of a study and what makes whole configurations of its fields, without data and models.

    Raises:
        InputError: the space gives what cannot be a trial.
    """
    students = UnbuiltStudents(settings)
    space = SearchSpace(study.space, settings.search, pinned_fields(settings, students.of({}).recipe))
    space.check(settings.seed, lambda fields: students.compose(settings, fields))
    return space, lambda fields: students.compose(settings, fields).model_dump()
