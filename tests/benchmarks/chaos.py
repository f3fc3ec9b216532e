"""Does a study lose, double or change anything where its processes are killed at random?

A fixed list of configurations is trained without early stopping on a Ray cluster of a head and two nodes: once in
peace, and once while processes are killed (SIGKILL), one after another: a Ray Train worker, a trial's proxy in Tune,
the broker, a lane's controller, a whole node (another one takes its place), MLflow's server (started again), and the
study's driver (the study is resumed). Before each fault some trial must have reported an epoch since the one before.

- `worker_death_s`: how much longer than its usual epoch a trial takes for the one in which its worker is killed, the
  longest of such faults; `driver_death_s` the same for the study's driver, until all trials go on. Where another
  process was killed within the same epoch, nobody knows what each of the two cost; where that is so of all faults of a
  kind, it is the median of what they cost together.

Compared are the study's records, Optuna's journal, MLflow's runs and trials.csv, and every epoch's metrics but those of
time, cost and the teacher store, which tell of the machine.
"""

import itertools
import json
import math
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

FAULTS = 20
TRIALS, EPOCHS = 8, 20
KINDS = ("worker", "worker", "proxy", "broker", "lane", "node", "tracking", "driver")
MACHINES = ("time/", "cost/", "teacher/")  # metrics that tell of the machine
ZEROS = ("trials_lost", "trials_duplicated", "metrics_differing", "processes_left")
COSTS = {"worker_death_s": 30.0, "driver_death_s": 60.0}  # at most
LIMIT_S = 1800


def measure(
    faults: int = FAULTS, trials: int = TRIALS, epochs: int = EPOCHS, nap: float | None = None
) -> dict[str, float]:
    """Runs both studies and compares them.

    Args:
        faults: at least so many, if the study lasts as long.
        trials, epochs: of the study.
        nap: has the student sleep so many seconds a step; such epochs last, and leave the cores to others.
    """
    from tests.search.cluster.disturbed import doubled, lost, write_space
    from tests.search.cluster.slow_student import write_slow_space

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)

        def write(place: Path) -> str:
            return write_slow_space(place, trials * [nap], epochs) if nap else write_space(place, trials, epochs)

        quiet = Run(folder / "quiet", write)
        quiet.run()
        disturbed = Run(folder / "disturbed", write)
        done = disturbed.run(faults)
        counts = Counter(kind for _, kind in done)
        print(f"  faults: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}")
        wrong = [lost(disturbed.folder, trials, epochs), doubled(disturbed.folder, disturbed.store)]
        for line in [*wrong[0], *wrong[1]]:
            print(f"  {line}")
        others = differing(quiet.folder, disturbed.folder)
        cost = {f"{kind}_death_s": lost_s(disturbed.folder, done, kind) for kind in ("worker", "driver")}
    return {
        "faults": float(len(done)),
        "trials_lost": float(len(wrong[0])),
        "trials_duplicated": float(len(wrong[1])),
        "metrics_differing": float(others),
        "processes_left": float(disturbed.left),
        **cost,
        "quiet_s": quiet.seconds,
        "disturbed_s": disturbed.seconds,
    }


def wrong(figures: dict[str, float], faults: int = FAULTS) -> list[str]:
    """What of the figures must not be, a line each."""
    found = [f"{name} is {figures[name]:g}, not 0" for name in ZEROS if figures[name]]
    if figures["faults"] < faults:
        found.append(f"the study ended after {figures['faults']:g} of {faults} faults; its trials are too short")
    return found


class Run:
    """One study `s` in a folder, on a cluster of its own with a tracking server of its own.

    Args:
        folder: is made.
        write: writes the space file into a folder and returns its path.
    """

    def __init__(self, folder: Path, write: Callable[[Path], str]):
        self.folder, self.seconds, self.left = folder, 0.0, 0
        self.store = f"sqlite:///{folder}/server.db"
        folder.mkdir()
        self._space = write(folder)

    def run(self, faults: int = 0) -> list[tuple[float, str]]:
        """Runs it to its end under at least so many faults; returns when each was, in Unix time, and of what kind."""
        from tests.search.cluster.clusters import cluster
        from tests.search.tracking.servers import over_sqlite

        done: list[tuple[float, str]] = []
        begun = time.monotonic()
        with over_sqlite(self.folder) as (self._uri, self._serve), cluster(self.folder / "ray") as self._cluster:
            self._server = self._serve()
            self._cluster.add_nodes(2, cpus=1)
            self._start()
            chooser = random.Random(0)
            kinds = [kind for _ in range(faults // len(KINDS) + 1) for kind in chooser.sample(KINDS, len(KINDS))]
            while self._driver.poll() is None:
                if len(done) < faults and self._progressed():
                    time.sleep(chooser.uniform(0, 2))  # anywhere in an epoch
                    kind, at = kinds[len(done)], time.time()
                    if self._disturb(kind):
                        done.append((at, kind))
                        print(f"  {time.monotonic() - begun:6.1f} s: {kind}", flush=True)
                time.sleep(0.2)
                assert time.monotonic() - begun < LIMIT_S, "the study does not end"
            assert self._driver.returncode == 0, self._log.read_text()[-3000:]
            self.seconds = time.monotonic() - begun
            self.left = len(self._cluster.studies_left())
        return done

    def _start(self) -> None:
        from tests.search import studies
        from tests.search.cluster.disturbed import reported

        self._log = self.folder / "console.log"
        flags = ["--space", self._space, "--name", "s", "--address", self._cluster.address, "--concurrency", "2"]
        flags += ["--tracking-uri", self._uri] + (["--resume"] if (self.folder / "runs" / "s").exists() else [])
        self._driver = studies.start(*flags, cwd=self.folder, output=self._log)
        self._epochs = reported(self.folder)

    def _progressed(self) -> bool:
        from tests.search.cluster.disturbed import reported

        epochs = reported(self.folder)
        news, self._epochs = epochs > self._epochs, max(epochs, self._epochs)
        return news

    def _disturb(self, kind: str) -> bool:
        from tests.search.cluster.clusters import kill_node
        from tests.search.cluster.faults import processes
        from tests.search.tracking.servers import stop

        if kind == "node":
            kill_node(self._cluster.nodes.pop(0))
            self._cluster.add_node(1)
        elif kind == "tracking":
            stop(self._server)
            self._server = self._serve()
        elif kind == "driver":
            self._driver.kill()
            self._driver.wait()
            self._start()
        elif found := processes(self.folder / "ray", kind):
            found[0].kill()
        else:
            return False
        return True


def differing(quiet: Path, disturbed: Path) -> int:
    """How many metrics differ between two studies, epoch by epoch."""
    from tests.search.cluster.disturbed import records

    peace, after = records(quiet), records(disturbed)
    count = 0
    for name in peace.keys() & after.keys():
        pair = [{entry["epoch"]: entry for entry in one[name]["history"]} for one in (peace, after)]
        for epoch in pair[0].keys() | pair[1].keys():
            before, now = (one.get(epoch, {}) for one in pair)
            names = {key for key in before.keys() | now.keys() if not key.startswith(MACHINES)}
            count += sum(before.get(key) != now.get(key) for key in names)
    return count


def missed(figures: dict[str, float]) -> list[str]:
    """Which targets of the time that faults may cost are missed, a line each."""
    over = {name: most for name, most in COSTS.items() if figures[name] > most}
    return [f"{name} is {figures[name]:.0f}, not {most:.0f} at most" for name, most in over.items()]


def lost_s(folder: Path, faults: list[tuple[float, str]], kind: str) -> float:
    """The most that a fault of a kind cost: of the epochs amid which trials were, the longest less a usual one.

    Those with no other one in their epoch count; where there are none, the median of the others. NaN: no fault.
    """
    found = [json.loads(path.read_text()) for path in (folder / "runs" / "s" / "trials").glob("*/record.json")]
    alone, together = [], []
    for record in found:
        gaps = list(itertools.pairwise(record["times"]))
        for sooner, later in gaps:
            within = [which for at, which in faults if sooner <= at < later]
            if kind in within:
                cost = later - sooner - statistics.median(end - begin for begin, end in gaps)
                (alone if len(within) == 1 else together).append(cost)
    return max(alone) if alone else statistics.median(together) if together else math.nan
