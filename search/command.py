"""The command behind `search/run.py`: from flags to a finished, reported study."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from search.preflight import estimate, preflight
from search.settings import Settings, load_space, resolve
from search.terminal import noise_to, person_console
from trainables.errors import InputError

FLAGS = (  # those that are fields of the settings, by the same name
    "name", "scale", "smoke", "warm_start", "trials", "epochs", "time_budget", "seed", "data", "data_dir",
    "workers_per_trial", "gpus_per_trial", "concurrency", "tracking_uri", "storage", "address",
)  # fmt: skip
COMMAND, LOG = "command.json", "run.log"


def report_problems(error: InputError) -> int:
    """Prints one line a problem on stderr; returns the exit code for bad input."""
    for problem in error.problems:
        print(f"error: {' '.join(problem.split())}", file=sys.stderr)
    return 2


def run_command(arguments, argv: list[str]) -> int:
    """Runs a study as the flags say; returns the exit code.

    Raises:
        InputError: what is wrong with the flags, the space, the data, the models or the surroundings.
    """
    flags = {flag: getattr(arguments, flag) for flag in FLAGS if getattr(arguments, flag) is not None}
    sets, space = list(arguments.set), arguments.space
    if arguments.resume:
        flags, sets = _as_before(flags, sets)
    study = load_space(space)
    flags.setdefault("name", f"{Path(space).stem}-{flags.get('scale', 'embedded')}-{time.strftime('%Y%m%d-%H%M%S')}")
    settings = resolve(study, {**flags, "space": str(space)}, sets)
    storage = _storage(settings)
    folder = storage / settings.name
    if arguments.dry_run:
        return _dry_run(study, settings, named={*flags, *(item.split("=")[0] for item in sets)})
    _surroundings(settings, folder, arguments.resume)
    settings = settings.model_copy(
        update={
            "concurrency": settings.concurrency or _lanes_that_fit(settings),
            "first_guesses": _warm_start(settings, storage) + settings.first_guesses,
        }
    )
    console = person_console()
    console.print(f"checking the space, the data and both models of study [bold]{settings.name}[/]")
    with noise_to(Path(os.devnull)):
        plan = preflight(study, settings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COMMAND).write_text(json.dumps({"flags": flags, "set": sets}, indent=1))
    if arguments.detach:
        return _detach(argv, settings.name, folder, console)
    from search.session import run_session

    return run_session(plan, folder, Path(space), console, resume=arguments.resume)


def tracking_uri(settings: Settings) -> str:
    """The study's MLflow store: the given one, or SQLite in the storage."""
    return settings.tracking_uri or f"sqlite:///{_storage(settings).resolve() / 'mlflow.db'}"


def _storage(settings: Settings) -> Path:
    scheme, separator, rest = settings.storage.partition("://")
    if not separator:
        return Path(settings.storage)
    if scheme == "file":
        return Path(rest)
    raise InputError(f"storage: '{settings.storage}' is no folder; give a local or shared (NFS) folder")


def _as_before(flags: dict[str, Any], sets: list[str]) -> tuple[dict[str, Any], list[str]]:
    """A resumed study's flags: those it was started with, and above them those given now."""
    if "name" not in flags:
        raise InputError("--resume: give the study's --name")
    path = Path(flags.get("storage", "runs").removeprefix("file://")) / flags["name"] / COMMAND
    if not path.exists():
        raise InputError(
            f"--resume: there is no study '{flags['name']}' in {path.parents[1]}{_studies(path.parents[1])}"
        )
    before = json.loads(path.read_text())
    return {**before["flags"], **flags}, before["set"] + sets


def _surroundings(settings: Settings, folder: Path, resume: bool) -> None:
    """What can be wrong around a study: its name, its folder, its port, its tracking store."""
    from search.tracking import check_tracking, experiment_exists

    problems = []
    if folder.exists() and not resume:
        problems.append(f"--name: study '{settings.name}' exists in {folder.parent}; add --resume or take another name")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        problems.append(f"storage: {folder.parent}: {error.strerror}; give a folder that can be written")
    if settings.dashboard_port and _in_use(settings.dashboard_port):
        problems.append(f"dashboard_port: {settings.dashboard_port} is in use; give a free port or leave it out")
    if problems:
        raise InputError(problems)
    uri = tracking_uri(settings)
    check_tracking(uri)
    if not resume and experiment_exists(uri, settings.name):
        raise InputError(f"--name: MLflow at {uri} has an experiment '{settings.name}'; take another name")


def _in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _lanes_that_fit(settings: Settings) -> int:
    """How many trials run side by side on this machine, by its CPUs and GPUs; a cluster's own count with --address."""
    if settings.address:
        from search.cluster import cluster_resources

        with noise_to(Path(os.devnull)):
            cpus, gpus = cluster_resources(settings)
    else:
        cpus, gpus = os.cpu_count() or 1, 0
        if settings.gpus_per_trial:
            import torch

            gpus = torch.cuda.device_count()
    by_cpu = int(cpus // (settings.workers_per_trial * settings.cpus_per_worker))
    by_gpu = int(gpus / settings.gpus_per_trial) if settings.gpus_per_trial else by_cpu
    if settings.gpus_per_trial and by_gpu < 1:
        raise InputError(f"gpus_per_trial: {settings.gpus_per_trial} asked for, but there are {int(gpus)} GPUs here")
    return max(1, min(by_cpu, by_gpu, settings.trials))


def _warm_start(settings: Settings, storage: Path) -> list[dict[str, Any]]:
    """The best parameters of earlier studies in the same storage, as first guesses."""
    from search.ledger import Ledger

    guesses = []
    for name in settings.warm_start:
        if not (storage / name / "trials").is_dir():
            raise InputError(f"--warm-start: there is no study '{name}' in {storage}{_studies(storage)}")
        best = Ledger(storage / name / "trials").best()
        if best is None:
            raise InputError(f"--warm-start: study '{name}' has no complete trial")
        guesses.append(best.params)
    return guesses


def _studies(storage: Path) -> str:
    names = sorted(path.parent.name for path in storage.glob(f"*/{COMMAND}"))
    return f"; there are {', '.join(names[-5:])}" if names else ""


def _detach(argv: list[str], name: str, folder: Path, console) -> int:
    """Starts the same command in the background, its lines in the study's folder."""
    again = [item for item in argv if item not in ("--detach", "--resume")] + ["--resume", "--name", name]
    with open(folder / "console.log", "a") as lines:
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run.py")), *again],
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=lines,
            start_new_session=True,
        )
    console.print(f"study {name} runs in the background (process {child.pid})")
    console.print(f"follow it:   tail -f {folder / 'console.log'}")
    console.print(f"stop it:     kill -INT {child.pid}")
    return 0


def _dry_run(study, settings: Settings, named: set[str]) -> int:
    """Checks everything, prints sampled configurations and the cost; writes and trains nothing."""
    console = person_console()
    settings = settings.model_copy(update={"concurrency": settings.concurrency or _lanes_that_fit_or_one(settings)})
    with noise_to(Path(os.devnull)):
        plan = preflight(study, settings, dry_run=True, named=named)
        cost = estimate(plan)
    from search.session import print_plan

    print_plan(console, plan, cost)
    return 0


def _lanes_that_fit_or_one(settings: Settings) -> int:
    try:
        return _lanes_that_fit(settings)
    except InputError:
        return 1  # a dry run may be made where the GPUs are not
