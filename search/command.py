"""The command behind `search/run.py`: from flags to a finished, reported study."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from joblib import cpu_count

from search.budgets import check_left
from search.earlier import read_studies
from search.estimate import project
from search.notify import read_target
from search.paths import import_from_current_folder, storage_folder, writable
from search.plan_view import print_plan
from search.preflight import Plan, preflight
from search.rehearsal import estimate, rehearse
from search.resume import STARTED, as_before, check_same, remember, sole_session, typed
from search.session_log import CONSOLE, begin
from search.settings import Settings, resolve
from search.space_file import load_space
from search.storage import JOURNAL, LOCK, Storage
from search.submission import job_address, submit_study
from search.terminal import noise_to, person_console
from search.tracking.credentials import without_secrets, words_without
from trainables.errors import InputError

FLAGS = (  # those that are fields of the settings, by the same name
    "name", "scale", "smoke", "warm_start", "trials", "epochs", "time_budget", "seed", "data", "data_dir",
    "workers_per_trial", "gpus_per_trial", "concurrency", "tracking_uri", "storage", "address",
)  # fmt: skip
LOG = "run.log"
UNNAMED = "unnamed"
REMEMBER_S = 30.0  # how long an object store may take for a study's first file
AT_BIRTH = {LOCK, f"{STARTED}.partial"}  # all that there is of a study that was killed as it began


def run_command(arguments, argv: list[str]) -> int:
    """Runs a study as the flags say; returns the exit code.

    Raises:
        InputError: what is wrong with the flags, the space, the data, the models or the surroundings.
    """
    flags = {flag: getattr(arguments, flag) for flag in FLAGS if getattr(arguments, flag) is not None}
    flags, sets = without_secrets(flags, list(arguments.set))
    space, resume = arguments.space, arguments.resume
    given = (dict(flags), list(sets))
    import_from_current_folder()
    if address := job_address(flags, sets):
        return submit_study(arguments, flags, sets, address, unnamed)
    if resume:
        flags, sets = as_before(flags, sets)
    study = load_space(space)
    settings = resolve(study, {"name": UNNAMED, **flags, "space": str(space)}, sets)
    if settings.name == UNNAMED:
        flags["name"] = unnamed(space, settings.scale)
        settings = settings.model_copy(update={"name": flags["name"]})
    storage = Storage(settings.storage)
    folder = storage.root / settings.name
    _surroundings(settings, storage, folder, resume)
    if settings.address:
        from search.nodes import check_nodes

        with noise_to(Path(os.devnull)):
            check_nodes(settings)
    for name in [*settings.warm_start, settings.simulate or ""]:
        if name and not set(":/") & set(name):
            storage.bring_if_there(name)
    begun = resume and (folder / JOURNAL).exists()  # what it began with is in its journal
    earlier = [] if begun else read_studies(settings.warm_start, tracking_uri(settings), storage.root)
    kept = _kept(folder) if begun and settings.warm_start else []
    if settings.address:
        with noise_to(Path(os.devnull)):
            most = _most_in_cluster(settings)
    else:
        most = None if settings.concurrency else _side_by_side(settings, arguments.dry_run)
    side_by_side = settings.concurrency or most
    settings = settings.model_copy(update={"concurrency": side_by_side})
    console = person_console()
    if arguments.dry_run:
        named = {*flags, *(item.split("=")[0].split(".")[0] for item in sets)}
        with noise_to(Path(os.devnull)):
            plan, splits = preflight(study, settings, earlier=earlier, kept=kept, dry_run=True, named=named)
            if resume:
                _check_resumed(plan, folder)
            cost = project(plan, None) if settings.simulate else _rehearsed(plan, splits)
            plan.notes += _carried(plan, folder, write=False) if resume else []
        print_plan(console, plan, cost)
        return 0
    checked = "the space" if settings.simulate else "the space, the data and both models"
    console.print(f"checking {checked} of study [bold]{settings.name}[/]")
    with noise_to(Path(os.devnull)):
        plan, splits = preflight(study, settings, earlier=earlier, kept=kept)
        if not settings.simulate:
            rehearse(plan, splits)
    if resume:
        _check_resumed(plan, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with sole_session(folder, storage) as mirroring:
        if resume:  # in the background the command that is started there does it, and says so
            plan.notes += _carried(plan, folder, write=not arguments.detach)
        remember(folder, plan.settings, plan.data_fingerprint, flags, sets, plan.searched)
        if not mirroring.flush(REMEMBER_S):
            raise InputError(f"storage: {storage} does not take what is written; check the network and the endpoint")
        if not arguments.detach:
            from search.session import run_session

            command = typed(str(space), {"name": settings.name, **given[0]}, given[1], resume=begun)
            return run_session(plan, folder, Path(space), console, resume, command, splits, storage, mirroring)
    return _detach(argv, settings.name, folder, console)


def unnamed(space: str, scale: str) -> str:
    """The name of a study that was given none."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(space).stem).strip("-.") or "study"
    return f"{stem}-{scale}-{time.strftime('%Y%m%d-%H%M%S')}"


def _rehearsed(plan, splits) -> dict[str, Any]:
    """The cost of a study whose every kind of trial made a step."""
    rehearse(plan, splits)
    return estimate(plan, splits)


def tracking_uri(settings: Settings) -> str:
    """The study's MLflow store: the given one, or SQLite in the storage."""
    return settings.tracking_uri or f"sqlite:///{storage_folder(settings.storage).resolve() / 'mlflow.db'}"


def _surroundings(settings: Settings, storage: Storage, folder: Path, resume: bool) -> None:
    """What can be wrong around a study: its name, its folder, its port, its tracking store."""
    from search.tracking.credentials import shown
    from search.tracking.store import Unreachable, check_tracking, experiment_exists

    problems = []
    storage.check(write=True)
    if not resume and storage.names(settings.name) - AT_BIRTH:
        problems.append(f"--name: study '{settings.name}' exists in {storage}; add --resume or take another name")
    if not writable(folder.parent):
        problems.append(f"storage: {folder.parent} cannot be written; give a folder that can")
    if settings.dashboard_port and _in_use(settings.dashboard_port):
        problems.append(f"dashboard_port: {settings.dashboard_port} is in use; give a free port or leave it out")
    try:
        read_target(settings.notify)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    uri = tracking_uri(settings)
    try:
        check_tracking(uri)
        taken = experiment_exists(uri, settings.name)
    except Unreachable:
        if not settings.tracking_offline:
            raise
        return  # the session says so, and finds out later whether the name is free
    if taken and not resume:
        raise InputError(f"--name: MLflow at {shown(uri)} has an experiment '{settings.name}'; take another name")


def _in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _side_by_side(settings: Settings, dry_run: bool) -> int:
    """How many trials run side by side on this machine, by its CPUs and GPUs.

    A dry run may be made where the GPUs are not.
    """
    cpus, gpus = cpu_count(), 0  # those that this process may use, containers' limits regarded
    if settings.gpus_per_trial:
        import torch

        gpus = torch.cuda.device_count()
    by_cpu = int(cpus // (settings.workers_per_trial * settings.cpus_per_worker))
    by_gpu = int(gpus / settings.gpus_per_lane) if settings.gpus_per_trial else by_cpu
    if settings.gpus_per_trial and by_gpu < 1 and not dry_run:
        raise InputError(f"gpus_per_trial: {settings.gpus_per_trial} asked for, but there are {int(gpus)} GPUs here")
    return max(1, min(min(by_cpu, by_gpu) * settings.pack, settings.trials))


def _most_in_cluster(settings: Settings) -> int:
    """How many trials may run side by side in the cluster at the address, which is joined and found large enough.

    Raises:
        InputError: nobody answers there, or no trial would ever fit.
    """
    from search.cluster import start_ray

    start_ray(settings)
    from search.placement import check_fits, most_lanes

    if not settings.simulate:
        check_fits(settings)
    return max(1, min(most_lanes(settings) * settings.pack, settings.trials))


def _kept(folder: Path) -> list[dict[str, Any]]:
    from search.optuna_study import kept_guesses

    return kept_guesses(folder)


def _check_resumed(plan: Plan, folder: Path) -> None:
    check_same(folder, plan.settings, plan.data_fingerprint)
    check_left(folder, plan.settings, plan.objectives[0].maximize)


def _carried(plan: Plan, folder: Path, write: bool) -> list[str]:
    """What of the earlier trials' parameters fits the space as it is now, and what else trials have otherwise now."""
    from search.journal import carry_over, changed_fields

    notes = carry_over(folder, plan.space, plan.settings.seed, plan.settings.sampler, write=write)
    return notes + changed_fields(folder, plan.drawn)


def _detach(argv: list[str], name: str, folder: Path, console) -> int:
    """Starts the same command in the background, its lines in the study's folder."""
    argv = words_without(argv)
    again = [item for item in argv if item not in ("--detach", "--resume")] + ["--resume", "--name", name]
    begin(folder)
    with open(folder / CONSOLE, "a") as lines:
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run.py")), *again],
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=lines,
            start_new_session=True,
        )
    console.print(f"study {name} runs in the background (process {child.pid})")
    follow = shlex.join(["tail", "-f", str(folder / CONSOLE)])
    console.print(f"follow it:   {follow}", soft_wrap=True, markup=False)
    console.print(f"stop it:     kill -INT {child.pid}")
    return 0
