"""The command behind `search/train.py`: the configuration that a study found, trained for use."""

import os
from pathlib import Path
from typing import Any

import yaml

from search.experiment import Experiment, teacher_folder
from search.ledger import COMPLETE, FAILED, Ledger, TrialRecord
from search.live import make_view
from search.mirroring import Plain
from search.model_card import WEIGHTS, write_card
from search.paths import import_from_current_folder, storage_folder
from search.preflight import Plan, preflight
from search.recipes import family_recipe
from search.resume import as_before, check_same, sole_session, space_of
from search.session import sync_line
from search.settings import resolve
from search.space_file import load_space
from search.storage import Storage
from search.terminal import log_exception, noise_to, person_console
from search.tracking.store import Unreachable, check_tracking
from search.tracking.tracker import Tracker
from trainables.errors import InputError, StudyError
from trainables.store_mode import parse_store

DELIVERED, ROLE = "delivered", "delivery"
CONFIG, CARD = "config.yaml", "MODEL_CARD.md"


def deliver(arguments) -> int:
    """Trains as the flags say and leaves weights, configuration and model card; returns the exit code.

    A run that was cut off goes on from its last epoch; one that is complete is only named.

    Raises:
        InputError: there is no such study or trial, or its data, models or teacher are no longer what they were.
    """
    from search.command import LOG, tracking_uri

    storage = Storage(arguments.storage or "runs")
    plan, folder = _plan(arguments)
    source = _source(Ledger(folder / "trials"), folder, arguments.trial)
    record = _record(plan, source, arguments.epochs)
    out = folder / DELIVERED / record.trial_id
    console, errors = person_console(), person_console(stderr=True)
    ledger = Ledger(folder / DELIVERED)
    known = ledger.records.get(record.trial_id)
    goes_on = known is not None and known.config == record.config and known.state != FAILED
    record = known if goes_on else record
    if record.state != COMPLETE:
        try:
            check_tracking(tracking_uri(plan.settings))
        except Unreachable:
            if not plan.settings.tracking_offline:
                raise
        teacher = teacher_folder(plan, folder)
        if not teacher.is_dir():
            raise InputError(
                f"--study: its teacher is no longer in {teacher.parent}; "
                f"have it made again: search/run.py --name {folder.name} --resume"
            )
        with sole_session(folder, storage) as mirroring, noise_to(folder / LOG):
            if known and not goes_on:
                storage.remove(out)
            interrupted = _train(plan, storage, mirroring, folder, record, tracking_uri(plan.settings), console, errors)
        if interrupted:
            console.print("interrupted; the same command goes on")
            return 130
    storage.fetch(out / WEIGHTS)
    _write(plan, source, record, folder, out)
    storage.give(out / CONFIG, out / CARD)
    top1 = record.metric("test/top1")
    console.print(
        f"{record.of} of study {folder.name}, trained for {record.epoch} epochs on the {plan.train_images} images of "
        f"the training split and the {plan.holdout_images} of the holdout: top-1 {top1:.2f} on the test split"
    )
    for name in (WEIGHTS, CONFIG, CARD):
        console.print(f"  {storage.shown(out / name)}", soft_wrap=True)
    return 0


def _plan(arguments) -> tuple[Plan, Path]:
    """The study as it was started, checked anew; one lane."""
    flags = {"name": arguments.study, "storage": arguments.storage, "tracking_uri": arguments.tracking_uri}
    flags |= {"address": arguments.address, "concurrency": 1}
    import_from_current_folder()
    folder = storage_folder(arguments.storage or "runs") / arguments.study
    given = {name: value for name, value in flags.items() if value is not None}
    flags, sets = as_before(given, [], "--study")
    space = space_of(folder)
    settings = resolve(load_space(str(space)), {**flags, "space": str(space)}, sets)
    if settings.simulate:
        raise InputError(
            f"--study: '{folder.name}' was simulated, so there is nothing worth training; name another one"
        )
    with noise_to(Path(os.devnull)):
        if settings.address:
            from search.nodes import check_nodes

            check_nodes(settings)
        plan, _ = preflight(load_space(str(space)), settings)
    check_same(folder, plan.settings, plan.data_fingerprint)
    return plan, folder


def _source(ledger: Ledger, folder: Path, trial: str | None) -> TrialRecord:
    """The trial whose configuration is trained: the one asked for, or the study's best."""
    if trial is None:
        if not (folder / "best.yaml").exists():
            raise InputError(f"--study: '{folder.name}' has no finished best trial yet; name one with --trial")
        trial = str(yaml.safe_load((folder / "best.yaml").read_text())["trial"])
    record = ledger.records.get(trial)
    if record is None or record.role not in ("trial", "baseline"):
        there = ", ".join(one.trial_id for one in ledger.records.values() if one.role in ("trial", "baseline"))
        raise InputError(f"--trial: '{folder.name}' has no trial '{trial}'; there are {there or 'none'}")
    return record


def _record(plan: Plan, source: TrialRecord, epochs: int | None) -> TrialRecord:
    """The training's own record: the source's configuration at full length, on all images but the test split's."""
    settings, facts = plan.settings, plan.students.of(source.config)
    if epochs is not None and epochs < 1:
        raise InputError(f"--epochs: {epochs} must be at least 1")
    epochs = epochs or facts.full_length["epochs"]
    at_length, _ = family_recipe(settings.recipes, facts.family, epochs, settings.full_epochs)
    own = settings.recipe.keys() | source.params.keys()  # what was set or searched holds at any length
    longer = {part: at_length[part] for part in facts.full_length if part != "epochs" and part not in own}
    config = {**source.config, **longer, "epochs": epochs, "train_with_holdout": True, "sched_restarts": []}
    if not parse_store(config.get("teacher_store", "off")).views:  # else its stream goes round, and answers come again
        config["teacher_store"] = "off"
    first = source.objective
    if (raw := source.metric(f"{first}_raw")) is not None:  # without a holdout nothing can tell which is better
        ahead = source.metric(f"{first}_ema") - raw
        config["model_ema"] = ahead >= 0 if source.objectives[first] else ahead <= 0
    of = f"{source.role} {source.trial_id}"
    name = of.replace(" ", "-") + (f"-{epochs}-epochs" if epochs != facts.full_length["epochs"] else "")
    objectives = {name.replace("val/", "test/"): maximize for name, maximize in source.objectives.items()}
    return TrialRecord(name, ROLE, config, source.params, objectives, of=of)


def _train(
    plan: Plan, storage: Storage, mirroring: Plain, folder: Path, record: TrialRecord, uri: str, console, errors
) -> bool:
    """Trains in a lane, logged under the study's parent run; whether it was interrupted."""
    tracker = Tracker(
        uri,
        folder,
        DELIVERED,
        offline=plan.settings.tracking_offline,
    )
    experiment = Experiment(plan, folder, tracker, tracker.open_again, storage, mirroring, DELIVERED)
    title = f"{plan.settings.teacher} teaches {record.config['student']}"
    done = False
    with make_view(console, 1, study=f"{folder.name}: {record.of}", pair=title) as view:
        experiment.view = view
        tracker.hear(view.note)
        mirroring.hear(view.note)

        def part(reason: str) -> None:
            tracker.close(None)
            errors.print(f"error: {reason}; the same command goes on", soft_wrap=True, markup=False)

        experiment.parting = part
        try:
            with experiment.interruptible():
                done = experiment.train(record)
        except StudyError as error:
            record.finish(str(error))
            experiment.ledger.save(record)
            tracker.trial_changed(record)
            raise
        except Exception:
            log_exception()
            raise
        finally:
            left = tracker.close(None)
            experiment.close()
    if left != 0:
        console.print(sync_line(plan, left), soft_wrap=True, markup=False)
    return not done


def _write(plan: Plan, source: TrialRecord, record: TrialRecord, folder: Path, out: Path) -> None:
    """The configuration and the card beside the weights, which the lane has left."""
    facts: dict[str, Any] = {
        "study": folder.name,
        "from": record.of,
        "test": {name: value for name, value in record.history[-1].items() if name.startswith("test/")},
        "searched": source.params,
        "config": record.config,
        "data_fingerprint": plan.data_fingerprint,
        "classes": plan.classes,
    }
    (out / CONFIG).write_text(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))
    write_card(out / CARD, plan, source, record, folder)
