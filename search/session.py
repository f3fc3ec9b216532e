"""One session of a study, as a person sees it: opening, the live view, and the end with its files and commands."""

import json
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import yaml

from search import comparisons, plots, results
from search.account import Account
from search.experiment import Experiment, Outcome
from search.final import best_record, final_frame, winners_figures
from search.ledger import RUNNING, Ledger
from search.live import View, make_view
from search.mirroring import Plain
from search.notify import DONE, FAILED, INTERRUPTED, Notifier, read_target
from search.objective import TOP1
from search.preflight import Plan
from search.report_command import write_report
from search.resume import STARTED, began_with, comparable, what_stays
from search.session_log import Both, session_log
from search.storage import Storage
from search.terminal import log_exception, noise_to, person_console
from search.tracking.credentials import masked, reminder, shown
from search.tracking.dataset import data_facts
from search.tracking.facts import provenance
from search.tracking.mirror import SIMULATED
from search.tracking.page import HOME, experiment_tags, run_note
from search.tracking.tracker import Tracker
from trainables.errors import InputError, StudyError
from trainables.files import STUDENT

FRONT = "pareto.png"  # of several objectives
RESULTS, BEST_RESULTS = ("trials.csv", "history.png", "importance.png"), ("best.yaml", "best_student.safetensors")
TRACEBACK = "Traceback (most recent call last)"
REPORT = ("report.html", "report.md")


def run_session(
    plan: Plan,
    folder: Path,
    space: Path,
    console,
    resume: bool,
    command: str,
    splits,
    storage: Storage,
    mirroring: Plain,
) -> int:
    """Runs or goes on with a study and leaves its results in its folder; returns the exit code.

    Args:
        command: the one that was typed, for the report.
        splits: the data, as `preflight` gives them, which lanes share where they are in memory.
        storage: where the study lies.
        mirroring: gives an object store what is written.

    Raises:
        InputError: the teacher turned out unfit, or MLflow refused; a new study's folder is removed then.
    """
    from search.command import LOG, tracking_uri

    settings = plan.settings
    uri = tracking_uri(settings)
    problem: str | None = None
    outcome: Outcome | None = None
    again = _command("run", plan, "--space", str(space), "--name", settings.name, "--resume")
    also = f" ({reminder()})" if reminder() else ""
    log = session_log(folder, console)
    told, errors = Both(console, log), Both(person_console(stderr=True), log)
    with noise_to(folder / LOG):
        tracker = Tracker(
            uri,
            folder,
            offline=settings.tracking_offline,
        )
        opening = partial(_open_tracking, tracker, plan, folder, space, resume)
        experiment = Experiment(plan, folder, tracker, opening, storage, mirroring, splits=splits)
        finished = [record for record in experiment.ledger.records.values() if record.state != RUNNING]
        with make_view(
            console,
            plan.trial_count(),
            study=settings.name,
            pair=f"{settings.teacher} teaches {settings.student}",
            finished=finished,
            log=log,
        ) as view:
            experiment.view = view
            tracker.hear(view.note)
            target = read_target(settings.notify)
            notifier = Notifier(target, settings.name, settings.notify_stalled_s, view.note)
            experiment.reported = notifier.report
            experiment.ledger.watch(notifier.report)
            mirroring.hear(view.note)

            def part(reason: str) -> None:
                tracker.close("FAILED")
                if storage.url:
                    mirroring.flush()
                notifier.tell(FAILED, f"failed: {reason}")
                errors.print(f"error: {reason}; go on with: {again}{also}", soft_wrap=True, markup=False)

            experiment.parting = part
            view.note(f"data: {plan.data}")
            if storage.url:
                view.note(f"storage: {storage.url}; working copy on this machine: {folder}")
            if storage.url and not settings.tracking_uri:
                view.note(
                    f"MLflow's database is in the working copy alone ({shown(uri)}): the study in the storage is the "
                    "whole of it, and search/sync.py fills any other"
                )
            view.note(f"log of Ray and other libraries: {folder / LOG}")
            for note in plan.notes:
                view.note(note)
            try:
                with notifier, Account(folder, command=command, notes=plan.notes) as account:
                    with experiment.interruptible():
                        outcome = experiment.run(account)
                    account.end(outcome.ending.field, outcome.ending.limit, outcome.ending.reason)
                    tracker.study_tags({"ended_by": outcome.ending.reason})
                    if not outcome.interrupted:
                        view.phase("writing the results")
                        _write_results(outcome, plan, storage, folder, tracker, view)
                        account.written()
            except InputError as error:
                notifier.tell(FAILED, f"failed: {error.problems[0]}")
                log.print("\n".join(f"error: {masked(line)}" for line in error.problems), markup=False)
                tracker.close("FAILED")
                experiment.close()
                if not resume and not experiment.ledger.records:
                    mirroring.forget()
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            except Exception as error:
                if not isinstance(error, StudyError):
                    log_exception()
                problem = str(error) if isinstance(error, StudyError) else _what_happened(error)
            interrupted = outcome is not None and outcome.interrupted
            failed = problem or (outcome and not interrupted and outcome.ledger.best() is None)
            mirroring.settle()  # MLflow is told of a trial when its log is here
            view.phase("writing the rest to MLflow")
            left = tracker.close("FAILED" if failed else "KILLED" if interrupted else "FINISHED")
            experiment.close()
            if storage.url:
                view.phase("writing the rest to the storage")
                mirroring.flush()
            mirroring.hear(lambda text: errors.print(text, soft_wrap=True, markup=False))  # the view ends
    if left != 0:
        told.print(sync_line(plan, left), soft_wrap=True, markup=False)
    if problem:
        problem = masked(" ".join(problem.split()))
        notifier.tell(FAILED, f"failed: {problem}")
        errors.print(f"error: {problem}; see {folder / LOG}; go on with: {again}{also}", soft_wrap=True, markup=False)
        return 1
    if interrupted:
        notifier.tell(INTERRUPTED, "interrupted; it goes on with --resume")
        told.print(f"interrupted; go on with{also}\n  {again}", soft_wrap=True, markup=False)
        return 130
    _print_end(told, outcome, plan, storage, folder, uri)
    if failed:
        no_trial = f"no trial completed; ended by: {outcome.ending.reason}"
        notifier.tell(FAILED, f"failed: {no_trial}")
        errors.print(f"error: {no_trial}; see {folder / LOG}", soft_wrap=True, markup=False)
        return 1
    notifier.tell(DONE, f"done: {_verdict(outcome.ledger, plan, folder)}")
    return 0


def _what_happened(error: Exception) -> str:
    """An error in a line; of one within Tune's callbacks Tune gives the traceback, whose last line says it."""
    text = str(error)
    return text.splitlines()[-1] if TRACEBACK in text else f"{type(error).__name__}: {text}"


def _open_tracking(tracker: Tracker, plan: Plan, folder: Path, space: Path, resume: bool) -> None:
    settings = plan.settings
    facts = provenance()
    resolved = settings.model_dump() | {
        "tracking_uri": settings.tracking_uri and shown(settings.tracking_uri),
        "recipe": plan.recipe,
        "teacher_recipe": plan.teacher_recipe,
        "family": plan.family,
    }
    objectives = {objective.metric: objective.maximize for objective in plan.objectives}
    dumped = yaml.safe_dump(resolved, sort_keys=False)
    (folder / "settings.yaml").write_text(dumped)
    shutil.copyfile(space, folder / "space.py")
    tags = {
        "pair": f"{settings.teacher} -> {settings.student}",
        "scale": settings.scale,
        "data": plan.data,
        "data_fingerprint": plan.data_fingerprint,
        "git_commit": facts.get("git/commit", "unknown"),
        # Studies that start warm from this one judge by these whether its results mean the same there.
        "comparable": comparable(what_stays(settings, plan.data_fingerprint)),
        "objectives": json.dumps(objectives),
    }
    if settings.pair:
        tags["pair_name"] = settings.pair
    tags |= _simulated(settings)
    params = {
        name: getattr(settings, name)
        for name in (
            "teacher", "student", "data", "img_size", "seed", "sampler", "scheduler", "trials", "epochs",
            "grace_epochs", "reduction_factor", "workers_per_trial", "concurrency", "pack", "holdout",
            "labels_per_class",
        )
    }  # fmt: skip
    versions = yaml.safe_dump(facts, sort_keys=True)
    shared = [Path(module.__file__) for name, module in list(sys.modules.items()) if name.startswith("spaces.")]
    texts = {space.name: space.read_text(), "settings.yaml": dumped, "versions.yaml": versions}
    texts |= {f"spaces/{path.name}": path.read_text() for path in shared}
    drawn = [config.model_dump() for config in plan.drawn]
    page = experiment_tags(settings.name, objectives, drawn, pair=tags["pair"], finalists=settings.finalists)
    tracker.open_study(tags, params, texts, page, data_facts(plan), resume)


def _write_results(outcome: Outcome, plan: Plan, storage: Storage, folder: Path, tracker: Tracker, view: View) -> None:
    from search.optuna_study import own_study

    ledger = outcome.ledger
    results.write_trials_csv(ledger, folder / "trials.csv")
    plots.plot_history(ledger, folder / "history.png")
    plots.plot_importance(own_study(outcome.study), folder / "importance.png")
    written = list(RESULTS)
    if ledger.front():
        plots.plot_front(ledger, folder / FRONT)
        written.append(FRONT)
    if best := best_record(ledger):
        if not plan.curves:
            weights = storage.fetch(folder / "trials" / best.trial_id / STUDENT)
            shutil.copyfile(weights, folder / BEST_RESULTS[1])
        canonical = {
            **_simulated(plan.settings),
            "study": plan.settings.name,
            "trial": best.trial_id,
            "val_top1": best.metric(TOP1),  # with one seed and on the images that chose
            "final": winners_figures(ledger),
            "holdout_images": plan.holdout_images,
            "data_fingerprint": plan.data_fingerprint,
            "teacher_top1": outcome.teacher["top1"],
            "teacher_sha256": outcome.teacher["sha256"],
            "full_length": plan.students.of(best.config).full_length,
            "searched": best.params,
            "config": best.config,
        }
        results.write_best_yaml(best, canonical, folder / "best.yaml", study=plan.settings.name)
        written += BEST_RESULTS[:1] if plan.curves else BEST_RESULTS
        if not plan.curves:
            tracker.best_model()
        for name in dict.fromkeys((ledger.objective, TOP1)):
            if (value := best.metric(name)) is not None:
                tracker.study_metric(results.best_name(name), value, 0)
        tracker.study_tags({"best_trial": best.trial_id})
    try:
        written += [path.name for path in write_report(folder, ledger, outcome.study)]
    except InputError as error:  # a broken file of an earlier session; the study itself is whole
        view.note(f"no report: {error}")
    sentences = {"verdict": _verdict(ledger, plan, folder), "branches": comparisons.branches(ledger)}
    tracker.study_tags({name: sentence for name, sentence in sentences.items() if sentence})
    next_steps = _next_steps(plan) if best else {}
    tracker.study_tags(run_note(sentences["verdict"], best and best.trial_id, next_steps))
    for name in written:
        tracker.study_artifact(folder / name)


def _print_end(console, outcome: Outcome, plan: Plan, storage: Storage, folder: Path, uri: str) -> None:
    ledger = outcome.ledger
    counts: dict[str, int] = {}
    for record in ledger.of_role("trial"):
        counts[record.state] = counts.get(record.state, 0) + 1
    console.print()
    console.print("the search, with one seed and on the images that chose:")
    results.print_table(console, results.final_table(ledger))
    if len(front := ledger.front()) > 1:
        console.print("\nthe Pareto front, no trial beats these in one objective without losing in another:")
        results.print_table(console, results.front_table(front))
    if comparisons.several_distillers(ledger):
        console.print()
        results.print_table(console, comparisons.distillers_frame(ledger))
    if (final := final_frame(ledger, ledger.folder)).size:
        console.print("\nthe final, each trained again with other seeds and judged on the test split too:")
        results.print_table(console, final)
    if best := best_record(ledger):
        console.print(f"\nbest:    {results.in_words(best.params)}")
    if not plan.curves:
        console.print(f"teacher: {plan.settings.teacher} reaches {outcome.teacher['top1']:.2f} on the holdout")
    console.print(_verdict(ledger, plan, folder))
    if cost := comparisons.branches(ledger):
        console.print(cost)
    console.print(f"trials: {', '.join(f'{number} {state}' for state, number in sorted(counts.items())) or 'none'}")
    written = [name for name in (*REPORT, *RESULTS, FRONT, *BEST_RESULTS) if (folder / name).exists()]
    console.print(f"ended by: {outcome.ending.reason}", markup=False)
    console.print(f"spent: {outcome.spent}", markup=False)
    console.print(f"files:  {storage.shown(folder)}/ ({', '.join(written)})")
    lines = ["", "compare the trials in MLflow's UI:", *(f"  {line}" for line in _ui_lines(uri))]
    for purpose, command in _next_steps(plan).items() if best else ():
        lines += [f"{purpose}:", f"  {command}"]
    if plan.curves:
        lines += [
            "",
            f"This study was simulated (simulate={plan.settings.simulate}): nothing was trained, its figures say "
            "nothing of real models, and there are no weights.",
        ]
    console.print("\n".join(lines), soft_wrap=True, markup=False)  # commands are pasted: no line may be broken


def _next_steps(plan: Plan) -> dict[str, str]:
    """What may be done with a study's best configuration: a command by its purpose; nothing with a simulated one's."""
    if plan.curves:
        return {}
    study = "--study", plan.settings.name
    return {
        "export the best configuration": _command("export", plan, *study, "--to", "json", "--out", "exported"),
        "train it in full, on training split and holdout together, for use": _command("train", plan, *study),
    }


def sync_line(plan: Plan, left: int | None) -> str:
    """What to do where MLflow lacks something at a session's end, or may do so."""
    command = _command("sync", plan, "--study", plan.settings.name)
    lacks = "may lack parts of this study" if left is None else f"lacks {left} run(s) or parts of them"
    return f"MLflow {lacks}; once it answers:\n  {command}"


def _verdict(ledger: Ledger, plan: Plan, folder: Path) -> str:
    images = plan.test_images, plan.holdout_images
    return results.lead(ledger, plan.settings.simulate, *images, began_with(json.loads((folder / STARTED).read_text())))


def _simulated(settings) -> dict[str, str]:
    """What marks a simulated study wherever its results are kept."""
    return {SIMULATED: settings.simulate} if settings.simulate else {}


def _ui_lines(uri: str) -> list[str]:
    """What to type and to open to see the study in MLflow."""
    if uri.startswith("http"):
        return [f"{shown(uri).rstrip('/')}/{HOME}"]
    mlflow, store = _relative(Path(sys.executable).with_name("mlflow")), uri.replace(f"{Path.cwd()}/", "")
    command = shlex.join([mlflow, "ui", "--backend-store-uri", shown(store), "--port", "5000"])
    return [command, f"http://127.0.0.1:5000/{HOME}"]


def _command(name: str, plan: Plan, *flags: str) -> str:
    """One of our commands for this study, to be pasted into a shell."""
    script = Path(__file__).with_name(f"{name}.py")
    storage = [] if plan.settings.storage == "runs" else ["--storage", plan.settings.storage]
    return shlex.join([_relative(Path(sys.executable)), _relative(script), *flags, *storage])


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
