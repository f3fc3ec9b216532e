"""A study from its plan to its results: Ray, lanes, teacher, Tune, and a clean end whatever happens."""

import contextlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from search.cluster import start_ray
from search.finalists import FINALIST
from search.ledger import RUNNING, Ledger, TrialRecord
from search.preflight import Plan
from search.tracking import Tracker
from trainables.errors import InputError, StudyError

TESTED = (FINALIST, "delivery")  # the roles that the test split is for
OUT_OF_TIME = "stopped by the time budget"
TEACHER = "teacher"  # the teacher's trial id at the broker


@dataclass
class Outcome:
    """How a study ended: `interrupted` by Ctrl-C, its records, the teacher's figures and Optuna's study."""

    interrupted: bool
    ledger: Ledger
    teacher: dict
    study: object


class Experiment:
    """Runs one study.

    Args:
        plan: what preflight resolved.
        folder: the study's folder.
        tracker: MLflow's side, not yet open.
        open_tracking: opens it; called once the teacher is fit to teach, so that a refused study leaves nothing there.
        records: the folder of the ledger within the study's.

    Attributes:
        view: the terminal's side; set before `run`.
        teacher_folder: where the teacher is kept for all studies.
    """

    def __init__(
        self, plan: Plan, folder: Path, tracker: Tracker, open_tracking: Callable[[], None], records: str = "trials"
    ):
        self.plan, self.settings, self.folder = plan, plan.settings, Path(folder).resolve()
        self.ledger = Ledger(self.folder / records)
        self._tracker, self._open_tracking, self.view = tracker, open_tracking, None
        self._interrupted = threading.Event()
        self._deadline: float | None = None
        self.teacher_folder = self.folder.parent / "teachers" / self._teacher_fingerprint()

    def run(self) -> Outcome:
        """Trains the study's remaining trials; no lane is left after it, but Ray is, until `close`.

        Raises:
            StudyError: no lane could be had, or the teacher could not be made ready.
            InputError: the teacher does not clearly beat chance, or does not fit.
        """
        with self._lanes() as (broker, lanes):
            teacher = self._ready_teacher(broker, lanes)
            study = None if self._interrupted.is_set() else self._search(broker, lanes)
            self._final(broker, lanes)
        if (lost := lanes.all_lost()) and not self._interrupted.is_set():
            raise StudyError(lost)
        return Outcome(self._interrupted.is_set(), self.ledger, teacher, study)

    def train(self, record: TrialRecord) -> bool:
        """Trains one record outside a search, in a lane, and judges it on the test split; goes on where it was left.

        Returns:
            False where it was interrupted.

        Raises:
            StudyError: the training failed, or no lane could be had.
            InputError: the configuration does not fit the data.
        """
        with self._lanes() as (broker, lanes):
            import ray

            from search.lanes import follow

            self.view.phase("opening MLflow")
            self._open_tracking()
            self.ledger.save(record)
            self._tracker.trial_started(record)
            self.view.trial_started(record)

            def on_report(metrics: dict) -> None:
                if record.add(metrics):
                    self.ledger.save(record)
                    self._tracker.trial_epoch(record, metrics)
                    self.view.trial_epoch(record)

            ray.get(broker.submit.remote(record.trial_id, self._job(record), judged=False))
            self.view.phase("training")
            ended = follow(broker, lanes, record.trial_id, on_report, self._interrupted.is_set)
            if ended is None:
                return False
            record.finish()
            self.ledger.save(record)
            self._tracker.trial_ended(record)
            self.view.trial_ended(record)
        return True

    @contextlib.contextmanager
    def _lanes(self):
        """Ray, the broker and the lanes; no lane is left after it, but Ray is, until `close`."""
        self.view.phase("starting Ray")
        start_ray(self.settings)
        import ray

        # All before there are threads: Ray's modules import one another in circles.
        import search.proxy
        import search.searcher  # noqa: F401
        from search.broker import Broker
        from search.lanes import Lanes

        broker = ray.remote(Broker).options(num_cpus=0, max_concurrency=1000).remote()
        if self.plan.curves:
            from search.simulation import SimulatedLanes

            lanes = SimulatedLanes(broker, self.settings.concurrency, self.plan.curves, self.plan.objectives)
        else:
            lanes = Lanes(broker, self.settings, self.folder / "ray")
        lanes.start()
        try:
            yield broker, lanes
        finally:
            if not isinstance(sys.exception(), KeyboardInterrupt):  # at once: Ray's processes end with this one
                self.view.phase("stopping the lanes")
                ray.get(broker.close.remote())
                if not lanes.close():
                    self.view.note("a lane does not quit; it ends with Ray")

    def close(self) -> None:
        """Leaves Ray: its processes end where this study started them."""
        ray = sys.modules.get("ray")
        if ray:
            ray.shutdown()
        shutil.rmtree(self.folder / "ray", ignore_errors=True)

    @contextlib.contextmanager
    def interruptible(self):
        """Within this, the first Ctrl-C (or SIGTERM) lets `run` stop cleanly."""
        previous = {kind: signal.signal(kind, self._on_signal) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for kind, handler in previous.items():
                signal.signal(kind, handler)

    def _on_signal(self, number, frame) -> None:
        """The first Ctrl-C stops cleanly; the next one at once."""
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        self._interrupted.set()
        self.view.note("stopping: running trials keep their last epoch's checkpoint (Ctrl-C again ends at once)")

    def _ready_teacher(self, broker, lanes) -> dict:
        """Has a lane make the teacher ready and judges it; returns its figures."""
        import ray

        from search.lanes import follow

        job = {
            "kind": "teacher",
            "config": self.plan.base.model_dump(),
            "recipe": self.plan.teacher_recipe,
            "folder": str(self.folder / "teacher"),
            "teacher_folder": str(self.teacher_folder),
        }
        self.view.phase(f"bringing up {self.settings.concurrency} lane(s); making {self.settings.teacher} ready")
        ray.get(broker.submit.remote(TEACHER, job, judged=False))
        epochs = self.plan.teacher_recipe["epochs"]

        def on_report(metrics: dict) -> None:
            accuracy = metrics["val/top1"]
            self.view.phase(f"fitting the teacher: epoch {metrics['epoch']}/{epochs}, holdout {accuracy:.2f}%")

        try:
            teacher = follow(broker, lanes, TEACHER, on_report, self._interrupted.is_set)
        except StudyError as error:
            raise StudyError(f"the teacher could not be made ready: {error}") from error
        if teacher is None:
            return {}
        words = f"teacher {self.settings.teacher}: {teacher['top1']:.2f}% on the holdout of {teacher['images']} images"
        if not self._beats_chance(teacher):
            if not self.settings.smoke:
                raise InputError(
                    f"teacher: {words} do not clearly beat chance ({100 / teacher['classes']:.1f}%); "
                    "check teacher_weights and the order of classes, or fit it: --set teacher_source=fit"
                )
            words += " (a smoke run does not judge it)"
        self.view.note(words)
        self.view.phase("opening MLflow")
        self._open_tracking()
        self._tracker.catch_up(list(self.ledger.records.values()))
        self._tracker.study_metric("teacher/top1", teacher["top1"], 0)
        self._tracker.study_tags({"teacher_sha256": teacher["sha256"]})
        return teacher

    def _search(self, broker, lanes):
        """Lets Tune run what is left of the study; returns Optuna's study."""
        from search.optuna_study import open_study
        from search.schedulers import make_scheduler
        from search.searcher import StudySearcher

        settings, objectives = self.settings, self.plan.objectives
        study = open_study(self.folder, settings.name, settings.sampler, settings.seed, objectives)
        if not study.trials and self.plan.grid is None:  # a grid begins with them
            for guess in settings.first_guesses[: settings.trials]:
                study.enqueue_trial(guess)
        baselines = {name: config.model_dump() for name, config in self.plan.baselines.items()}
        searcher = StudySearcher(
            study,
            self.plan.space,
            self.plan.compose,
            baselines,
            self._baseline_searches(baselines),
            self.plan.grid,
            *self._searcher_arguments(broker),
        )
        left = searcher.left(settings.trials)
        if left <= 0:
            return study
        self._deadline = time.monotonic() + settings.time_budget if settings.time_budget else None
        begun = sum(record.role != FINALIST for record in self.ledger.records.values()) - searcher.running
        self.view.expect(begun + left + max(self.plan.final_count, len(self.ledger.of_role(FINALIST))))
        self.view.phase("searching")
        self._tune("search", searcher, make_scheduler(settings, self.ledger, objectives[0]), left, broker, lanes)
        if self._out_of_time() and not self._interrupted.is_set():
            self._end_running(study)
        return study

    def _baseline_searches(self, baselines: dict[str, dict]) -> list:
        """The small searches of the baselines, where this session or an earlier one asked for them."""
        from search.baselines import BaselineSearch
        from trainables.config import TrialConfig

        settings = self.settings
        if not settings.tune_baselines and not any(record.of for record in self.ledger.of_role("baseline")):
            return []
        return [
            BaselineSearch(
                self.folder,
                name,
                config,
                settings.tune_baselines,
                settings.seed + number,
                self.ledger,
                lambda config: TrialConfig(**config),
            )
            for number, (name, config) in enumerate(baselines.items())
        ]

    def _final(self, broker, lanes) -> None:
        """Trains the best trials and the baselines again, in full and over seeds; they alone see the test split."""
        from ray.tune.schedulers import FIFOScheduler

        from search.finalists import final_records
        from search.searcher import ListSearcher

        if self._stop_reason(lanes) or not self.settings.finalists:
            return
        records = final_records(self.ledger, self.settings)
        if not records:
            return
        again = sum(record.trial_id in self.ledger.records for record in records)
        self.view.expect(len(self.ledger.records) - again + len(records))
        self.view.phase("training the finalists and the baselines again, each with other seeds")
        searcher = ListSearcher(records, *self._searcher_arguments(broker))
        self._tune("final", searcher, FIFOScheduler(), len(records), broker, lanes)

    def _searcher_arguments(self, broker) -> tuple:
        import ray

        return (
            self.ledger,
            self._job,
            lambda trial_id: ray.get(broker.reason.remote(trial_id)),
            {objective.metric: objective.maximize for objective in self.plan.objectives},
        )

    def _tune(self, name: str, searcher, scheduler, samples: int, broker, lanes) -> None:
        """One run of Tune over so many records of the searcher."""
        from ray import tune

        from search.proxy import StudyCallback, StudyStopper, make_proxy

        tune.Tuner(
            make_proxy(broker),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=samples,
                max_concurrent_trials=self.settings.concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(self.folder / "ray"),
                callbacks=[StudyCallback(broker, self.ledger, self._tracker, self.view)],
                stop=StudyStopper(lambda: self._stop_reason(lanes) is not None),
                verbose=0,
            ),
        ).fit()

    def _stop_reason(self, lanes) -> str | None:
        """Why no more should be trained."""
        if self._interrupted.is_set():
            return "interrupted"
        if self._out_of_time():
            return OUT_OF_TIME
        return lanes.all_lost()

    def _out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _end_running(self, study) -> None:
        """Closes the records of trials that the time budget cut off; others that are cut off go on with --resume."""
        from search.optuna_study import tell

        for record in list(self.ledger.records.values()):
            if record.state == RUNNING:
                record.finish(stopped=OUT_OF_TIME)
                self.ledger.save(record)
                if record.role == "trial":
                    tell(study, record)
                self._tracker.trial_ended(record)
                self.view.trial_ended(record)

    def _job(self, record) -> dict:
        return {
            "kind": "trial",
            "config": record.config,
            "params": record.params,
            "folder": str(self.ledger.trial_folder(record.trial_id)),
            "known_epoch": record.epoch,
            "test": record.role in TESTED,
            "teacher_folder": str(self.teacher_folder),
        }

    def _beats_chance(self, teacher: dict) -> bool:
        if self.plan.curves:
            return True
        from trainables.teacher import clearly_beats_chance

        return clearly_beats_chance(teacher["top1"], teacher["images"], teacher["classes"])

    def _teacher_fingerprint(self) -> str:
        if self.plan.curves:
            return "simulated"
        from trainables.teacher import fingerprint

        return fingerprint(self.plan.base, self.plan.teacher_recipe, self.plan.data_fingerprint)
