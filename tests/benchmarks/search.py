"""What does a trial cost besides its training? 1,000 simulated trials through the whole real path, and Ray's own.

Ours: `search/run.py --set simulate=synthetic`, that is Tune, proxy, broker, searcher, scheduler, ledger and MLflow on
SQLite. Stock: Tune with Ray's `OptunaSearch`, its ASHA and its `MLflowLoggerCallback` on SQLite, reused actors, the
same space, curves, number of trials, epochs and slots, and no other loggers. Each runs in a process of its own, first
ours. `over_stock` compares the two processes' walls from start to exit, so ours with its pictures and tables.

`ms_per_trial` is the time from the first trial's end to the last one's by the ledger's clock, over the trials between:
start-up is left out. `growth_ms` compares its last tenth with its first. `memory_growth_mb` is the resident set of the
driver and of the process that writes to MLflow at the end of the search less that after the first ten trials.
"""

import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "spaces" / "vit_to_mlp.py"
TRIALS, EPOCHS, GRACE, SLOTS, SEED = 1000, 5, 1, 2, 0
POLL_S = 0.25
WARM_TRIALS = 10


def measure() -> dict[str, float]:
    """Runs both searches."""
    with tempfile.TemporaryDirectory() as folder:
        ours, sizes = _ours(Path(folder))
        ends = _ends(Path(folder))
        print(f"  ours: {ours:.1f} s", flush=True)
        stock = _stock(Path(folder))
        print(f"  stock: {stock:.1f} s", flush=True)
    gaps = [1000 * (later - sooner) for sooner, later in itertools.pairwise(ends)]
    tenth = len(gaps) // 10
    first, last = sum(gaps[:tenth]) / tenth, sum(gaps[-tenth:]) / tenth
    warm = next(size for at, size in sizes if at >= ends[WARM_TRIALS])
    end = next((size for at, size in sizes if at >= ends[-1]), sizes[-1][1])
    return {
        "ms_per_trial": sum(gaps) / len(gaps),
        "growth_ms": last - first,
        "memory_growth_mb": (end - warm) / 2**20,
        "over_stock": ours / stock,
        "first_tenth_ms": first,
        "last_tenth_ms": last,
        "wall_s": ours,
        "stock_wall_s": stock,
    }


def _ours(folder: Path) -> tuple[float, list[tuple[float, int]]]:
    """Seconds, and the resident bytes by time of the driver and its tracking process."""
    fields = ["simulate=synthetic", "baselines=[]", "finalists=0", f"grace_epochs={GRACE}", "scheduler=asha"]
    arguments = ["--trials", TRIALS, "--epochs", EPOCHS, "--concurrency", SLOTS, "--seed", SEED, "--name", "s"]
    command = [ROOT / "search" / "run.py", "--space", SPACE, *arguments, "--set", *fields]
    return _watched([sys.executable, *map(str, command)], folder)


def _stock(folder: Path) -> float:
    command = [sys.executable, "-c", "from tests.benchmarks.search import stock; stock()"]
    return _watched(command, folder)[0]


def _watched(command: list[str], folder: Path) -> tuple[float, list[tuple[float, int]]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begun, sizes = time.time(), []
    with open(folder / "out.log", "w") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=environment)
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # a process may end meanwhile
                sizes.append((time.time(), sum(one.memory_info().rss for one in [seen, *_tracking(seen)])))
            time.sleep(POLL_S)
        code = process.wait()
    if code:
        raise RuntimeError(f"{command[1]} ended with {code}:\n{(folder / 'out.log').read_text()[-2000:]}")
    return time.time() - begun, sizes


def _tracking(driver: psutil.Process) -> list[psutil.Process]:
    """Python's own child processes, not Ray's."""
    return [one for one in driver.children() if "multiprocessing.spawn" in " ".join(one.cmdline())]


def _ends(folder: Path) -> list[float]:
    """When each trial ended, in that order."""
    records = (json.loads(path.read_text()) for path in (folder / "runs" / "s" / "trials").glob("*/record.json"))
    ends = sorted(record["ended"] for record in records)
    if len(ends) != TRIALS:
        raise RuntimeError(f"{len(ends)} of {TRIALS} trials were recorded")
    return ends


@functools.cache
def _parts():
    """The space and what composes its trials, read once in each of Tune's processes as in ours."""
    from search.settings import resolve
    from search.space_file import load_space
    from search.virtual import study_parts

    study = load_space(str(SPACE))
    settings = resolve(study, {"name": "stock", "space": str(SPACE), "epochs": EPOCHS, "simulate": "synthetic"}, [])
    return study, *study_parts(settings, study)


def _trainable(config: dict) -> None:
    import optuna
    from ray import tune

    from search.landscape import Synthetic

    _, space, compose = _parts()
    whole = compose(space(optuna.trial.FixedTrial(config)))
    for metrics in Synthetic()(whole, config, EPOCHS, SEED):
        tune.report(metrics)


def _by_name(config: dict) -> None:
    """The trainable as its processes import it: pickled whole, it would bring its own empty cache for each trial."""
    from tests.benchmarks.search import _trainable

    _trainable(config)


def _suggest(trial) -> None:
    _parts()[0].space(trial)


def stock() -> None:
    """The search with Ray's own parts, in this process and its current folder."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    tune.Tuner(
        tune.with_resources(_by_name, {"CPU": 0.001}),
        tune_config=tune.TuneConfig(
            metric="val/top1",
            mode="max",
            search_alg=OptunaSearch(space=_suggest, metric="val/top1", mode="max", seed=SEED),
            scheduler=ASHAScheduler(time_attr="epoch", max_t=EPOCHS + 1, grace_period=GRACE, reduction_factor=3),
            num_samples=TRIALS,
            max_concurrent_trials=SLOTS,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="stock",
            storage_path=str(Path.cwd() / "ray"),
            callbacks=[MLflowLoggerCallback(f"sqlite:///{Path.cwd()}/stock.db", experiment_name="stock")],
            verbose=0,
        ),
    ).fit()
    ray.shutdown()
