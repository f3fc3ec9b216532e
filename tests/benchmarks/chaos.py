"""Does a study lose, double or change anything where its processes are killed at random?

A fixed list of configurations is trained without early stopping on a Ray cluster of a head and two nodes: once in
peace, and once while processes are killed (SIGKILL), one after another: a Ray Train worker, a trial's proxy in Tune,
the broker, a lane's controller, a whole node (another one takes its place), MLflow's server (started again), and the
study's driver (the study is resumed). Before each fault some trial must have reported an epoch since the one before.

Compared are the study's records, Optuna's journal, MLflow's runs and trials.csv, and every epoch's metrics but those of
time, cost and the teacher store, which tell of the machine.
"""

import json
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

FAULTS = 20
TRIALS, EPOCHS = 8, 14
KINDS = ("worker", "worker", "proxy", "broker", "lane", "node", "tracking", "driver")
MACHINES = ("time/", "cost/", "teacher/")  # metrics that tell of the machine
LIMIT_S = 1800
BODY = 'return {"stages": [3, 4], "eps": trial.suggest_float("eps", 1.0, 2.0)}'
FIELDS = (
    f"trials={TRIALS}, epochs={EPOCHS}, scheduler='none', labels_per_class=60, student='mixer_nano', "
    "student_kwargs={}, holdout=0.5"
)


def measure() -> dict[str, float]:
    """Runs both studies and compares them."""
    from tests.search import studies

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        guesses = [{"eps": 1 + round(number / TRIALS, 4)} for number in range(TRIALS)]
        space = studies.write_space(folder, BODY, guesses, FIELDS)
        quiet = Run(folder / "quiet", space)
        quiet.run()
        disturbed = Run(folder / "disturbed", space)
        faults = disturbed.run(faults=FAULTS)
        print(f"  faults: {', '.join(f'{count} {kind}' for kind, count in sorted(faults.items()))}")
        lost, doubled, differing = compare(quiet.folder, disturbed.folder)
        left = disturbed.left
    return {
        "faults": float(sum(faults.values())),
        "trials_lost": float(lost),
        "trials_duplicated": float(doubled),
        "metrics_differing": float(differing),
        "processes_left": float(left),
        "quiet_s": quiet.seconds,
        "disturbed_s": disturbed.seconds,
    }


class Run:
    """One study `s` in a folder, on a cluster of its own with a tracking server of its own."""

    def __init__(self, folder: Path, space: str):
        self.folder, self._space, self.seconds, self.left = folder, space, 0.0, 0
        folder.mkdir()

    def run(self, faults: int = 0) -> Counter:
        """Runs it to its end under at least so many faults; returns how many there were of each kind."""
        from tests.search.cluster.clusters import cluster
        from tests.search.tracking.servers import over_sqlite

        done: Counter = Counter()
        begun = time.monotonic()
        with over_sqlite(self.folder) as (self._uri, self._serve), cluster(self.folder / "ray") as self._cluster:
            self._server = self._serve()
            for _ in range(2):
                self._cluster.add_node(1)
            self._start()
            chooser = random.Random(0)
            kinds = [kind for _ in range(faults // len(KINDS) + 1) for kind in chooser.sample(KINDS, len(KINDS))]
            while self._driver.poll() is None:
                if sum(done.values()) < faults and self._progressed():
                    time.sleep(chooser.uniform(0, 2))  # anywhere in an epoch
                    kind = kinds[sum(done.values())]
                    if self._disturb(kind):
                        done[kind] += 1
                        print(f"  {time.monotonic() - begun:6.1f} s: {kind}", flush=True)
                time.sleep(0.2)
                assert time.monotonic() - begun < LIMIT_S, "the study does not end"
            assert self._driver.returncode == 0, self._log.read_text()[-3000:]
        self.seconds = time.monotonic() - begun
        self.left = len(self._cluster.left())
        return done

    def _start(self) -> None:
        from tests.search import studies

        self._log = self.folder / "console.log"
        flags = ["--space", self._space, "--name", "s", "--address", self._cluster.address, "--concurrency", "2"]
        flags += ["--tracking-uri", self._uri] + (["--resume"] if (self.folder / "runs" / "s").exists() else [])
        os.environ["OFAKD_TEST"] = str(self.folder / "ray")
        self._driver = studies.start(*flags, cwd=self.folder, output=self._log)
        self._epochs = self._reported()

    def _reported(self) -> int:
        records = (self.folder / "runs" / "s" / "trials").glob("*/record.json")
        return sum(len(json.loads(path.read_text())["history"]) for path in records)

    def _progressed(self) -> bool:
        epochs = self._reported()
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


def compare(quiet: Path, disturbed: Path) -> tuple[int, int, int]:
    """How many trials were lost, doubled anywhere, and how many metrics differ."""
    peace, after = _records(quiet), _records(disturbed)
    lost = sum(name not in after or after[name]["state"] != record["state"] for name, record in peace.items())
    differing = 0
    for name in peace.keys() & after.keys():
        pair = [{entry["epoch"]: entry for entry in one[name]["history"]} for one in (peace, after)]
        for epoch in pair[0].keys() | pair[1].keys():
            before, now = (one.get(epoch, {}) for one in pair)
            names = {key for key in before.keys() | now.keys() if not key.startswith(MACHINES)}
            differing += sum(before.get(key) != now.get(key) for key in names)
    doubled = sum(len(one["history"]) - len({entry["epoch"] for entry in one["history"]}) for one in after.values())
    return lost, doubled + _doubled_elsewhere(disturbed, after), differing


def _doubled_elsewhere(folder: Path, records: dict[str, dict]) -> int:
    """What Optuna, MLflow and trials.csv have more often than once, or otherwise than the records."""
    import optuna
    import pandas
    from mlflow import MlflowClient

    wrong = 0
    rows = pandas.read_csv(folder / "runs" / "s" / "trials.csv").trial_id.astype(str)
    wrong += Counter(rows) != Counter(records)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "runs" / "s" / "optuna.log"))
    told = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend)).trials
    numbers = Counter(trial.number for trial in told if trial.state == optuna.trial.TrialState.COMPLETE)
    wrong += numbers != Counter(record["number"] for record in records.values() if record["role"] == "trial")
    client = MlflowClient(f"sqlite:///{folder}/server.db")
    runs = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    trials = [run for run in runs if run.data.tags["role"] != "study"]
    wrong += Counter(run.data.tags["trial_id"] for run in trials) != Counter(records)
    for run in trials:
        points = client.get_metric_history(run.info.run_id, "val/top1")
        history = records[run.data.tags["trial_id"]]["history"]
        wrong += sorted((one.step, one.value) for one in points) != [(one["epoch"], one["val/top1"]) for one in history]
    return wrong


def _records(folder: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in (folder / "runs" / "s" / "trials").glob("*/record.json")]
    return {record["trial_id"]: record for record in found}
