"""How far does a study go? 10,000 trials of 300 s on 200 slots, and what it takes to go on with them.

The study is begun by `search/run.py`, goes on here on a virtual clock (`search/virtual.py`) and is then taken up again
by `search/run.py --resume`, in one folder, all with `simulate`. On the virtual clock slots are no processes and
training takes no real time; searcher, Optuna's journal, ASHA, ledger and tracking with its writing process and SQLite
are a study's own, on disk, and the driver's work is on the clock as long as it really takes, one thing after another.
Tune's own loop and the proxies are not in it: `search` measures these.

A trial has 10 epochs of 30 s. Its curve differs from others in its last epoch only, so that ASHA judges every epoch at
its rungs and stops nobody: every trial lasts 300 s, and the ideal is 10,000 * 300 s / 200 = 15,000 s to the second.
Tracking has a harder time than in such a study: what takes four hours there comes within minutes.

- `wall_over_ideal`: the virtual clock at the end over the ideal.
- `memory_growth_mb`, `writer_growth_mb`: resident set of the driver and of the process that writes to MLflow at the end
  of the search, less that when the first 200 trials had ended.
- `ms_per_trial`: the driver's own time, `growth_ms` that of the last tenth of the trials less that of the first;
  `searcher_ms` and so on say where it goes, the journal's and the ledger's part not counted in the others.
- `written_s`: from the search's end until MLflow has all of it.
- `mlflow_mb`, `journal_mb`, `ledger_mb`: what they take on disk.
- `resume_s`: from the start of the command that resumes the study with more trials until trials run on all its lanes
  (2); `results_s`: from its last trial's end to its exit: tables, pictures, report, MLflow.
"""

import contextlib
import itertools
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from unittest.mock import patch

import psutil

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "spaces" / "vit_to_mlp.py"
TRIALS, SLOTS, EPOCHS, EPOCH_S = 10_000, 200, 10, 30.0
FIRST, MORE, LANES = 2, 20, 2  # trials of the command that begins the study, and of the one that resumes it
MOST = {"wall_over_ideal": 1.05, "memory_growth_mb": 500.0, "resume_s": 60.0}
FLAT = 50.0  # percent, before the last epoch
WRITING_S = 1800.0
FLAGS = {"name": "s", "space": str(SPACE), "epochs": EPOCHS, "seed": 0}
FIELDS = ["simulate=synthetic", "baselines=[]", "finalists=0", "scheduler=asha"]


def measure() -> dict[str, float]:
    """Begins, runs and resumes the study."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _command(folder, "--trials", FIRST, "--epochs", EPOCHS, "--seed", 0, "--space", SPACE, "--set", *FIELDS)
        figures = _search(folder / "runs" / "s")
        print(f"  {figures}", flush=True)
        figures |= _sizes(folder / "runs")
        lines = _command(folder, "--space", SPACE, "--resume", "--trials", TRIALS + MORE)
        started = [at for at, line in lines if line.rstrip().find(" started ") > 0]
        ended = [at for at, line in lines if " complete  " in line or " pruned  " in line]
        return figures | {"resume_s": started[LANES - 1], "results_s": lines[-1][0] - ended[-1]}


def missed(figures: dict[str, float]) -> list[str]:
    """Which targets are missed, a line each."""
    return [f"{name} is {figures[name]:g}, not {most:g} at most" for name, most in MOST.items() if figures[name] > most]


def _search(folder: Path) -> dict[str, float]:
    """The whole search on the virtual clock."""
    from search.objective import parse_objectives
    from search.settings import resolve
    from search.space_file import load_space
    from search.tracking.tracker import Tracker
    from search.virtual import simulate_study, study_parts

    study = load_space(str(SPACE))
    settings = resolve(study, {**FLAGS, "trials": TRIALS, "concurrency": SLOTS}, FIELDS)
    tracker = Tracker(f"sqlite:///{folder.parent / 'mlflow.db'}", folder)
    tracker.open_again()
    marks: list[tuple[float, list[float]]] = []  # the driver's own time and both processes' sizes, each 100 trials

    def look(state) -> None:
        if len(state.ended) >= 100 * (len(marks) + 1):
            marks.append((state.own_s, _resident()))
            if len(marks) % 10 == 0:
                sizes = " and ".join(f"{size:.0f}" for size in marks[-1][1])
                print(
                    f"  {len(state.ended)} trials: {state.seconds:.0f} s, {state.own_s:.1f} of them ours; {sizes} MB",
                    flush=True,
                )

    with Timed() as timed:
        state = simulate_study(
            settings,
            *study_parts(settings, study),
            _flat,
            parse_objectives(settings.objectives),
            slots=SLOTS,
            folder=folder,
            stop=look,
            tracker=tracker,
            clock=time.perf_counter,
        )
    ran = len(state.ended)
    trained = sum(record.epoch for _, _, record in state.ended) * EPOCH_S
    if ran != TRIALS - FIRST or trained != ran * EPOCHS * EPOCH_S:
        raise RuntimeError(f"{ran} of {TRIALS - FIRST} trials ran, {trained:g} s in all")
    sizes, warm = _resident(), marks[SLOTS // 100 - 1][1]
    begun = time.perf_counter()
    if left := tracker.close(timeout=WRITING_S):
        raise RuntimeError(f"{left} trials were not written")
    written = time.perf_counter() - begun
    each = [(later - sooner) * 10 for (sooner, _), (later, _) in itertools.pairwise(marks)]
    tenth = max(1, len(each) // 10)
    return {
        "wall_over_ideal": state.seconds / (trained / SLOTS),
        "memory_growth_mb": sizes[0] - warm[0],
        "writer_growth_mb": sizes[1] - warm[1],
        "ms_per_trial": 1000 * state.own_s / ran,
        "growth_ms": (sum(each[-tenth:]) - sum(each[:tenth])) / tenth,
        **{f"{name}_ms": 1000 * seconds / ran for name, seconds in sorted(timed.seconds.items())},
        "written_s": written,
    }


def _flat(config, params, epochs, seed) -> list[dict]:
    """A curve that tells nothing before its last epoch, as another process sends it: with keys of its own."""
    from search.landscape import Synthetic

    curve = Synthetic()(config, params, epochs, seed)
    for entry in curve:
        entry["time/epoch_s"] = EPOCH_S
    for entry in curve[:-1]:
        entry["val/top1"] = FLAT
    return [pickle.loads(pickle.dumps(entry)) for entry in curve]


class Timed:
    """Within it, how long the parts of a driver take, each without what it calls of another one."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]
        self._patches = contextlib.ExitStack()

    def __enter__(self):
        from search.journal_file import Journal
        from search.ledger import Ledger
        from search.schedulers import _Halving
        from search.searcher import StudySearcher
        from search.tracking.tracker import Tracker

        for name, owner, methods in (
            ("searcher", StudySearcher, ("suggest", "on_trial_complete")),
            ("journal", Journal, ("append_logs", "read_logs", "sync")),
            ("scheduler", _Halving, ("on_trial_add", "on_trial_result", "on_trial_complete")),
            ("ledger", Ledger, ("save",)),
            ("tracking", Tracker, ("trial_started", "trial_changed")),
        ):
            for method in methods:
                self._patches.enter_context(patch.object(owner, method, self._timed(name, getattr(owner, method))))
        return self

    def __exit__(self, *error):
        self._patches.close()

    def _timed(self, name: str, function):
        def call(*arguments, **named):
            began = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                took = time.perf_counter() - began
                self.seconds[name] += took - self._inner.pop()
                self._inner[-1] += took

        return call


def _resident() -> list[float]:
    """Megabytes of this process and of the one that writes to MLflow."""
    from tests.benchmarks.search import _tracking

    mine = psutil.Process()
    return [one.memory_info().rss / 2**20 for one in (mine, *_tracking(mine))]


def _sizes(runs: Path) -> dict[str, float]:
    """Megabytes on disk."""

    def size(path: Path) -> float:
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(one.stat().st_blocks * 512 for one in files) / 2**20

    study = runs / "s"
    return {
        "mlflow_mb": size(runs / "mlflow.db"),
        "journal_mb": size(study / "optuna.log"),
        "ledger_mb": size(study / "trials"),
    }


def _command(folder: Path, *arguments) -> list[tuple[float, str]]:
    """A command of the study's, to its end: its lines and when they came, in seconds since its start."""
    words = [ROOT / "search" / "run.py", "--name", "s", "--concurrency", LANES, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begun, lines = time.time(), []
    with subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        for line in process.stdout:
            lines.append((time.time() - begun, line))
    lines.append((time.time() - begun, ""))
    if process.returncode:
        raise RuntimeError("".join(line for _, line in lines))
    return lines
