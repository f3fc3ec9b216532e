"""A study from its plan to its results: Ray, lanes, teacher, Tune, and a clean end whatever happens."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from search import account as phases
from search.account import Account
from search.budgets import Budgets, Ending, Spent, all_ran
from search.cluster import keep_secrets_from_ray, start_ray
from search.finalists import FINALIST
from search.interrupts import Interrupts
from search.ledger import RUNNING, Ledger, TrialRecord
from search.mirroring import Plain
from search.preflight import Plan
from search.storage import Storage
from search.stored import store_url
from search.tracking.tracker import Tracker
from trainables.errors import StudyError
from trainables.files import WARNINGS, drop_checkpoint

TESTED = (FINALIST, "delivery")  # the roles that the test split is for
INTERRUPTED = Ending("", None, "interrupted")


@dataclass
class Outcome:
    """How a study ended: `interrupted` by Ctrl-C, its records, the teacher's figures, Optuna's study, what it spent."""

    interrupted: bool
    ledger: Ledger
    teacher: dict
    study: object
    spent: Spent
    ending: Ending


class Experiment:
    """Runs one study.

    Args:
        plan: what preflight resolved.
        folder: the study's folder.
        tracker: MLflow's side, not yet open.
        open_tracking: opens it; called once the teacher is fit to teach, so that a refused study leaves nothing there.
        storage: where the study lies.
        mirroring: gives an object store what is written.
        records: the folder of the ledger within the study's.
        splits: the data, where they have been read already.

    Attributes:
        view: the terminal's side; set before `run`.
        reported: called at each report of the teacher; those of trials can be watched in the ledger.
        teacher_folder: where the teacher is kept for all studies.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        tracker: Tracker,
        open_tracking: Callable[[], None],
        storage: Storage,
        mirroring: Plain,
        records: str = "trials",
        splits=None,
    ):
        self._splits = splits
        self.plan, self.settings, self.folder = plan, plan.settings, Path(folder).resolve()
        self.ledger = Ledger(self.folder / records)
        self._storage, self._mirroring = storage, mirroring
        mirroring.watch(self.ledger)
        self._tracker, self._open_tracking, self.view = tracker, open_tracking, None
        self.reported: Callable[[], None] = lambda: None
        self.parting: Callable[[str], None] = lambda reason: None
        self._interrupts = Interrupts(
            lambda: self.view.note(
                "stopping: running trials keep their last epoch's checkpoint (Ctrl-C again ends at once)"
            )
        )
        self._budgets: Budgets | None = None
        self.teacher_folder = teacher_folder(plan, self.folder)

    def run(self, account: Account) -> Outcome:
        """Trains the study's remaining trials; no lane is left after it, but Ray is, until `close`.

        Args:
            account: the study's, told of the phases.

        Raises:
            StudyError: no lane could be had, or the teacher could not be made ready.
            InputError: the teacher does not clearly beat chance, or does not fit.
        """
        plan, settings = self.plan, self.settings
        with self._lanes() as (broker, lanes):
            account.phase(phases.TEACHER)
            account.hold(1)
            self.ledger.settle()
            self._budgets = Budgets(settings, self.ledger, account, plan.objectives[0], plan.final_count)
            teacher = self._ready_teacher(broker, lanes)
            account.hold(0)
            account.phase(phases.SEARCH)
            study = None if self._interrupts.is_set() else self._search(broker, lanes)
            account.phase(phases.FINALISTS)
            search_ending = self._budgets.final()
            self._final(broker, lanes, study)
            account.phase(phases.RESULTS)
        for record in self.ledger.records.values():  # a lane may write one more for what was cut off, so not before
            if record.state != RUNNING:
                drop_checkpoint(self.ledger.trial_folder(record.trial_id))
        self._mirroring.tidy(self.ledger)
        self._mirroring.settle()  # the results need what lanes have left
        if (lost := lanes.all_lost()) and not self._interrupts.is_set():
            raise StudyError(lost)
        ran = len(self.ledger.of_role("trial"))
        ending = self._budgets.ending or search_ending
        if ending is None:
            ending = all_ran(settings.trials, plan.points, plan.grid is not None, ran)
        if self._interrupts.is_set():
            ending = INTERRUPTED
        return Outcome(ending is INTERRUPTED, self.ledger, teacher, study, self._budgets.spent(), ending)

    def train(self, record: TrialRecord) -> bool:
        """Trains one record outside a search, in a lane, and judges it on the test split; goes on where it was left.

        Returns:
            False where it was interrupted.

        Raises:
            StudyError: the training failed, or no lane could be had.
            InputError: the configuration does not fit the data.
        """
        with self._lanes() as (broker, lanes):
            from search.lanes import follow

            self.view.phase("opening MLflow")
            self._open_tracking()
            self.ledger.save(record)
            self._tracker.trial_started(record)
            self.view.trial_started(record)

            def on_report(metrics: dict) -> None:
                for line in metrics.pop(WARNINGS, ()):
                    self.view.note(line)
                if record.add(metrics):
                    self.ledger.save(record)
                    self._tracker.trial_changed(record)
                    self.view.trial_epoch(record)

            if not record.whole:  # else it was cut off after its last epoch
                job = self._job(record)
                self._mirroring.after(record, lambda: broker.submit.remote(record.trial_id, job, judged=False))
                self.view.phase("training")
                if follow(broker, lanes, record.trial_id, on_report, self._interrupts.is_set) is None:
                    return False
            record.finish()
            self.ledger.save(record)
            self._mirroring.ended(record, lambda: self._tracker.trial_changed(record))
            self._mirroring.settle()
            self.view.trial_ended(record)
        return True

    @contextlib.contextmanager
    def _lanes(self):
        """Ray, the broker and the lanes; no lane is left after it, but Ray is, until `close`."""
        self.view.phase("starting Ray")
        start_ray(self.settings)

        # All before there are threads: Ray's modules import one another in circles.
        import search.proxy
        import search.searcher  # noqa: F401
        from search.serving import served

        parts = self.plan, self.folder, self.ledger, self._tracker, self.view, self._splits
        with served(*parts, on_lost=self._end_at_once) as (broker, lanes):
            yield broker, lanes

    def close(self) -> None:
        """Leaves Ray: its processes end where this study started them."""
        ray = sys.modules.get("ray")
        if ray:
            ray.shutdown()
        shutil.rmtree(self.folder / "ray", ignore_errors=True)

    def _end_at_once(self, reason: str) -> None:
        """Ends this process, as a kill would, since what waits for Ray waits for ever; all records are on disk."""
        self.view.__exit__(None, None, None)
        try:
            self.parting(reason)
        finally:
            os._exit(1)

    def interruptible(self):
        """Within this, the first Ctrl-C (or SIGTERM) lets `run` stop cleanly."""
        return self._interrupts

    def _ready_teacher(self, broker, lanes) -> dict:
        """Has a lane make the teacher ready, then opens MLflow; the teacher's figures, {} where it was interrupted.

        Raises:
            StudyError: as `ready_teacher`, or a budget ran out first.
        """
        from search.teaching import ready_teacher

        lane = "lanes as they are wanted, {} at most" if self.settings.address else "{} lane(s)"
        self.view.phase(f"bringing up {lane.format(self.settings.lanes)}; making {self.settings.teacher} ready")
        teacher = ready_teacher(
            self.plan,
            self._places(self.folder / "teacher"),
            broker,
            lanes,
            self.view,
            lambda: self._interrupts.is_set() or self._budgets.used_up(),
            self.reported,
        )
        if not teacher and not self._interrupts.is_set():
            raise StudyError(f"{self._budgets.used_up()} before the teacher was ready; raise the budget")
        if teacher:
            self.view.phase("opening MLflow")
            self._open_tracking()
            if not self.plan.curves:
                self._tracker.study_metric("teacher/top1", teacher["top1"], 0)
                self._tracker.study_tags({"teacher_sha256": teacher["sha256"]})
        return teacher

    def _search(self, broker, lanes):
        """Lets Tune run what is left of the study; returns Optuna's study."""
        from search.baselines import baseline_searches
        from search.optuna_study import open_study
        from search.schedulers import make_scheduler
        from search.searcher import StudySearcher

        settings, objectives = self.settings, self.plan.objectives
        study = open_study(
            self.folder,
            settings.name,
            settings.sampler,
            settings.seed,
            objectives,
            settings.first_guesses if self.plan.grid is None else [],  # a grid begins with them
            self.plan.priors,
            trials=settings.trials,
            warm=self.plan.warm,
        )
        baselines = {name: config.model_dump() for name, config in self.plan.baselines.items()}
        searcher = StudySearcher(
            study,
            self.plan.space,
            self.plan.compose,
            baselines,
            baseline_searches(self.folder, settings, baselines, self.ledger),
            self.plan.grid,
            *self._searcher_arguments(broker, lanes),
        )
        left = searcher.left(settings.trials)
        if left <= 0:
            return study
        begun = sum(record.role != FINALIST for record in self.ledger.records.values()) - searcher.running
        self.view.expect(begun + left + max(self.plan.final_count, len(self.ledger.of_role(FINALIST))))
        self.view.phase("searching")
        self._budgets.search()
        self._tune("search", searcher, make_scheduler(settings, self.ledger, objectives[0]), left, broker, lanes)
        if not self._end_running(study, broker, lanes, ("trial", "baseline")) and searcher.left(settings.trials) <= 0:
            self._budgets.all_done()
        return study

    def _final(self, broker, lanes, study) -> None:
        """Trains the best trials and the baselines again, in full and over seeds; they alone see the test split."""
        from search.finalists import final_records
        from search.schedulers import StopsNone
        from search.searcher import ListSearcher

        if not self.settings.finalists:
            return
        records = final_records(self.ledger, self.settings, self.plan.students.swapped)
        if not records or self._stop_reason(lanes):
            return
        again = sum(record.trial_id in self.ledger.records for record in records)
        self.view.expect(len(self.ledger.records) - again + len(records))
        self.view.phase("training the finalists and the baselines again, each with other seeds")
        searcher = ListSearcher(records, *self._searcher_arguments(broker, lanes))
        self._tune("final", searcher, StopsNone(self.settings), len(records), broker, lanes)
        if not self._end_running(study, broker, lanes, (FINALIST,)) and not searcher.left():
            self._budgets.all_done()

    def _searcher_arguments(self, broker, lanes) -> tuple:
        import ray

        def admits(epochs: int | None, fresh: bool) -> bool | None:
            return self._stop_reason(lanes) is None and self._budgets.admits(epochs, fresh)

        return (
            self.ledger,
            lambda record: self._hand_over(broker, record),
            lambda trial_id: ray.get(broker.reason.remote(trial_id)),
            {objective.metric: objective.maximize for objective in self.plan.objectives},
            admits,
            lanes.room,
            lambda trial_id: ray.get(broker.had_no_room.remote(trial_id)),
        )

    def _tune(self, name: str, searcher, scheduler, samples: int, broker, lanes) -> None:
        """One run of Tune over so many records of the searcher.

        Raises:
            StudyError: a disk is full.
        """
        from ray import tune

        from search.proxy import PROXY_DEATHS, StudyCallback, StudyStopper, make_proxy
        from search.tune_repair import take_want_of_memory_as_a_death

        keep_secrets_from_ray()
        take_want_of_memory_as_a_death()
        lanes.work = lambda: samples - searcher.ended
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
                callbacks=[
                    StudyCallback(broker, self.ledger, self._tracker, self.view, self._budgets, self._mirroring)
                ],
                stop=StudyStopper(lambda: bool(searcher.no_room or self._stop_reason(lanes))),
                failure_config=tune.FailureConfig(max_failures=PROXY_DEATHS),
                verbose=0,
            ),
        ).fit()
        if searcher.no_room:
            raise StudyError(searcher.no_room)

    def _stop_reason(self, lanes) -> str | None:
        """Why no more should be trained."""
        return "interrupted" if self._interrupts.is_set() else lanes.all_lost() or self._budgets.cut()

    def _end_running(self, study, broker, lanes, roles: tuple[str, ...]) -> int:
        """Closes the records, of those roles, of what a budget cut off, and counts them; others go on with --resume."""
        from search.optuna_study import tell

        reason = self._budgets.reason()
        if reason is None or self._interrupts.is_set() or lanes.all_lost():
            return 0
        running = [one for one in self.ledger.records.values() if one.state == RUNNING and one.role in roles]
        for record in running:
            record.finish(stopped=reason)
            self.ledger.save(record)
            broker.forget.remote(record.trial_id)  # its lane stops at its next report
            if record.role == "trial":
                tell(study, record)
            self._mirroring.ended(record, lambda record=record: self._tracker.trial_changed(record))
            self.view.trial_ended(record)
        return len(running)

    def _hand_over(self, broker, record: TrialRecord) -> None:
        job = self._job(record)
        self._mirroring.after(record, lambda: broker.submit.remote(record.trial_id, job))

    def _job(self, record) -> dict:
        return {
            "kind": "trial",
            "config": record.config,
            "params": record.params,
            **self._places(self.ledger.trial_folder(record.trial_id)),
            "known_epoch": record.epoch,
            "test": record.role in TESTED,
            "teacher_store": store_url(self.settings, self.folder.parent),
        }

    def _places(self, folder: Path) -> dict[str, str | None]:
        """Where a job's folder and the teacher's are, in the object store too."""
        url_of = self._storage.url_of
        return {
            "folder": str(folder),
            "teacher_folder": str(self.teacher_folder),
            "remote": url_of(folder),
            "teacher_remote": url_of(self.teacher_folder),
            "storage": self._storage.url,
        }


def teacher_folder(plan: Plan, folder: Path) -> Path:
    """Where a study's teacher is kept for all studies.

    Args:
        folder: the study's.
    """
    name = "simulated"
    if not plan.curves:
        from trainables.teacher import fingerprint

        name = fingerprint(plan.base, plan.teacher_recipe, plan.data_fingerprint)
    return folder.parent / "teachers" / name
