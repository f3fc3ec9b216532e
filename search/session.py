"""One session of a study, as a person sees it: opening, the live view, and the end with its files and commands."""

import shutil
import sys
from pathlib import Path

import yaml

from search import results
from search.experiment import Experiment, Outcome, StudyError
from search.ledger import RUNNING
from search.live import make_view
from search.preflight import Plan
from search.terminal import noise_to
from search.tracking import Tracker, provenance
from trainables.errors import InputError

SAMPLES_SHOWN = 5


def run_session(plan: Plan, folder: Path, space: Path, console, resume: bool) -> int:
    """Runs or goes on with a study and leaves its results in its folder; returns the exit code.

    Raises:
        InputError: the teacher turned out unfit, or MLflow refused; a new study's folder is removed then.
    """
    from search.command import LOG, tracking_uri

    settings = plan.settings
    uri = tracking_uri(settings)
    problem: str | None = None
    outcome: Outcome | None = None
    with noise_to(folder / LOG):
        tracker = Tracker(
            uri,
            str(folder.parent / "artifacts"),
            settings.name,
            spool=folder / "tracking_errors.log",
            on_run_id=lambda record: experiment.ledger.save(record),
            on_warning=lambda text: view.note(text),
        )
        experiment = Experiment(plan, folder, tracker, view=None)
        finished = [record for record in experiment.ledger.records.values() if record.state != RUNNING]
        with make_view(
            console,
            plan.trial_count(),
            study=settings.name,
            pair=f"{settings.teacher} teaches {settings.student}",
            finished=finished,
        ) as view:
            experiment.view = view
            view.note(f"data: {plan.data}")
            view.note(f"log of Ray and other libraries: {folder / LOG}")
            for note in plan.notes:
                view.note(note)
            view.phase("opening MLflow")
            try:
                with experiment.interruptible():
                    _open_tracking(tracker, plan, folder, space, resume)
                    outcome = experiment.run()
            except StudyError as error:
                problem = str(error)
            except InputError:
                tracker.close("FAILED")
                if not resume:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            if outcome and not outcome.interrupted:
                view.phase("writing the results")
                _write_results(outcome, plan, folder, tracker)
        failed = problem or (outcome and not outcome.interrupted and outcome.ledger.best() is None)
        interrupted = outcome is not None and outcome.interrupted
        tracker.close("FAILED" if failed else "KILLED" if interrupted else "FINISHED")
    if problem:
        print(f"error: {problem}; see {folder / LOG}", file=sys.stderr)
        return 1
    if interrupted:
        console.print(f"interrupted; go on with\n  {_command('run', plan, space)} --name {settings.name} --resume")
        return 130
    _print_end(console, outcome, plan, folder, uri)
    return 1 if failed else 0


def _open_tracking(tracker: Tracker, plan: Plan, folder: Path, space: Path, resume: bool) -> None:
    settings = plan.settings
    facts = provenance()
    dumped = yaml.safe_dump(settings.model_dump(), sort_keys=False)
    (folder / "settings.yaml").write_text(dumped)
    shutil.copyfile(space, folder / "space.py")
    tags = {
        "pair": f"{settings.teacher} -> {settings.student}",
        "scale": settings.scale,
        "data": plan.data,
        "data_fingerprint": plan.data_fingerprint,
        "git_commit": facts.get("git/commit", "unknown"),
    }
    params = {
        name: getattr(settings, name)
        for name in (
            "teacher", "student", "data", "img_size", "seed", "sampler", "scheduler", "trials", "epochs",
            "grace_epochs", "reduction_factor", "workers_per_trial", "concurrency", "holdout", "labels_per_class",
        )
    }  # fmt: skip
    versions = yaml.safe_dump(facts, sort_keys=True)
    tracker.open_study(tags, params, {space.name: space, "settings.yaml": dumped, "versions.yaml": versions}, resume)


def _write_results(outcome: Outcome, plan: Plan, folder: Path, tracker: Tracker) -> None:
    ledger = outcome.ledger
    results.write_trials_csv(ledger, folder / "trials.csv")
    results.plot_history(ledger, folder / "history.png")
    results.plot_importance(outcome.study, folder / "importance.png")
    written = ["trials.csv", "history.png", "importance.png"]
    if best := ledger.best():
        shutil.copyfile(ledger.trial_folder(best.trial_id) / "student.safetensors", folder / "best_student.safetensors")
        canonical = {
            "study": plan.settings.name,
            "trial": best.trial_id,
            "val_top1": best.value,
            "holdout_images": plan.holdout_images,
            "data_fingerprint": plan.data_fingerprint,
            "teacher_top1": outcome.teacher["top1"],
            "teacher_sha256": outcome.teacher["sha256"],
            "full_epochs": plan.settings.full_epochs or plan.settings.epochs,
            "searched": best.params,
            "config": best.config,
        }
        results.write_best_yaml(best, canonical, folder / "best.yaml", study=plan.settings.name)
        written += ["best.yaml", "best_student.safetensors"]
        tracker.study_metric("best/val_top1", best.value, 0)
        tracker.study_tags({"best_trial": best.trial_id})
    for name in written:
        tracker.study_artifact(folder / name)


def _print_end(console, outcome: Outcome, plan: Plan, folder: Path, uri: str) -> None:
    ledger = outcome.ledger
    counts: dict[str, int] = {}
    for record in ledger.of_role("trial"):
        counts[record.state] = counts.get(record.state, 0) + 1
    console.print()
    results.print_table(console, results.final_table(ledger))
    if best := ledger.best():
        console.print(f"\nbest:    {results.in_words(best.params)}")
    console.print(f"teacher: {plan.settings.teacher} reaches {outcome.teacher['top1']:.2f} on the holdout")
    console.print(results.verdict(ledger, plan.holdout_images))
    console.print(f"trials: {', '.join(f'{number} {state}' for state, number in sorted(counts.items()))}")
    console.print(f"files:  {folder}/ (trials.csv, best.yaml, best_student.safetensors, history.png, importance.png)")
    console.print("\ncompare the trials in MLflow's UI:")
    console.print(f"  {_ui_command(uri)}")
    if best:
        console.print("export the best configuration:")
        console.print(f"  {_command('export', plan, None)} --study {plan.settings.name} --to json --out exported")


def _ui_command(uri: str) -> str:
    if uri.startswith("http"):
        return f"open {uri}"
    mlflow = Path(sys.executable).with_name("mlflow")
    return f"{_relative(mlflow)} ui --backend-store-uri {uri.replace(str(Path.cwd()) + '/', '')} --port 5000"


def _command(name: str, plan: Plan, space: Path | None) -> str:
    script = Path(__file__).with_name(f"{name}.py")
    parts = [_relative(Path(sys.executable)), _relative(script)]
    if space:
        parts += ["--space", str(space)]
    if plan.settings.storage != "runs":
        parts += ["--storage", plan.settings.storage]
    return " ".join(parts)


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def print_plan(console, plan: Plan, cost: dict[str, float]) -> None:
    """What a dry run shows: both models, the stages, sampled configurations and the estimate."""
    from trainables.loop import build_student
    from trainables.student import parameter_counts

    settings = plan.settings
    student = build_student(plan.base.model_copy(update={"student_source": "scratch"}), plan.num_classes)
    millions = {part: f"{count / 1e6:.2f} M" for part, count in parameter_counts(student).items()}
    stages = ", ".join(map(str, plan.available))
    lines = [
        ("study", f"{settings.name}: {settings.trials} trials of {settings.epochs} epochs, {settings.sampler} sampler, "
                  f"{settings.scheduler} scheduler; baselines {', '.join(plan.baselines)}"),
        ("data", plan.data),
        ("teacher", f"{settings.teacher} ({settings.teacher_source})"),
        ("student", f"{settings.student}, {millions['student']} parameters, recipe of family '{plan.family}'"),
        ("stages", f"{stages}; projectors at all of them have {millions['projectors']} parameters"),
        *(("note", note) for note in plan.notes),
    ]  # fmt: skip
    for word, text in lines:
        console.print(f"{word:<9} {text}")
    console.print(f"\n{SAMPLES_SHOWN} configurations from the space:")
    for params, _ in plan.space.samples(SAMPLES_SHOWN, settings.seed):
        console.print(f"  {results.in_words(params)}")
    console.print(
        f"\na step takes {cost['step_s']:.3f} s here (all stages, batch {plan.base.batch_size}), "
        f"{cost['steps_per_epoch']} steps an epoch: a full trial {_span(cost['trial_s'])}"
    )
    console.print(
        f"the study on {cost['lanes']} lane(s): {_span(cost['study_min_s'])} where the scheduler stops as it may, "
        f"at most {_span(cost['study_s'])}, and the teacher's own time"
    )
    console.print("nothing was trained or written")


def _span(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
