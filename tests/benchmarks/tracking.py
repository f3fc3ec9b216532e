"""What does logging to MLflow cost the training, and how many trials a second does a local server take?

A trial is a run of 12 params and 5 epochs of 11 metrics, without artifacts but for `overhead`, to an `mlflow server` of
one worker process on SQLite.

- `overhead`: two processes train two trials each, one after another, so that both cores are busy as in a study,
  with epochs as long as the main job has (2 s);
  their time with everything logged through `search/tracking/`, pictures and logs included, over the time without,
  minus 1; the median of interleaved pairs. What is still to be written when they end is not waited for: in a study the
  next trials train then.
- `trials_per_s`: trials that have ended and wait in a study's folder, as after an outage, over the time until the
  server has them whole.
- `direct_trials_per_s`: the same, to SQLite without a server.
- `over_calls`: `trials_per_s` over that of one request a number, in the manner of Ray's own MLflow callback.
"""

import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

PAIRS, SIDE_BY_SIDE, TRIALS, EPOCHS = 15, 2, 2, 5
WAITING, CALLED = 300, 40  # trials
IMAGES, SIZE, BATCH = 800, 32, 64
METRICS = (
    "train/loss", "train/loss_gt", "train/loss_kd", "train/loss_ofa", "val/top1", "val/top5", "val/loss",
    "val/agreement", "best/val_top1", "time/epoch_s", "time/images_per_s",
)  # fmt: skip
PARAMS = (
    "student", "teacher", "distiller", "eps", "temperature", "stages", "gt_loss_weight", "kd_loss_weight",
    "ofa_loss_weight", "lr", "epochs", "opt",
)  # fmt: skip


def measure() -> dict[str, float]:
    """Trains, and writes."""
    from tests.search.tracking.servers import over_sqlite

    with tempfile.TemporaryDirectory() as name, over_sqlite(folder := Path(name)) as (uri, start):
        start()
        figures = {"trials_per_s": _waiting(folder / "served", uri)}
        figures["over_calls"] = figures["trials_per_s"] / _called(uri)
        figures["direct_trials_per_s"] = _waiting(folder / "direct", f"sqlite:///{folder}/direct.db")
        for key, value in figures.items():
            print(f"  {key} {value:.1f}", flush=True)
        return {"overhead": _overhead(folder, uri), **figures}


def _record(number: int):
    from search.ledger import TrialRecord

    config = dict.fromkeys(PARAMS, "x") | {"epochs": EPOCHS, "distiller": "ofa", "eps": 1.2, "stages": [1, 2]}
    record = TrialRecord(str(number), "baseline", config, {})
    for epoch in range(1, EPOCHS + 1):
        record.add({"epoch": epoch, **{key: number / 7 + epoch + at for at, key in enumerate(METRICS)}})
    record.finish()
    return record


def _waiting(folder: Path, uri: str) -> float:
    """Trials a second of those that wait in a folder; the first hundredth warms everything up."""
    from search.ledger import Ledger
    from search.tracking.mirror import SIMULATED, Mirror
    from search.tracking.study_run import StudyRun
    from search.tracking.writer import Writer

    folder.mkdir()
    # Simulated, as it is: such trials have no artifacts.
    StudyRun(folder, folder.name).begin({SIMULATED: "benchmark"}, {}, {})
    ledger = Ledger(folder / "trials")
    writer = Writer(Mirror(uri, folder))
    writer.open(offline=False)
    for number in range(WAITING):
        ledger.save(_record(number))
    begun = time.perf_counter()
    for number in range(WAITING):
        writer.tell(f"trials/{number}")
    if left := writer.close(timeout=600):
        raise RuntimeError(f"{left} trials were not written")
    return WAITING / (time.perf_counter() - begun)


def _called(uri: str) -> float:
    from search.tracking.store import connect

    client = connect(uri)
    experiment = client.create_experiment("called")
    begun = time.perf_counter()
    for number in range(CALLED):
        record = _record(number)
        run_id = client.create_run(experiment, tags={"trial_id": record.trial_id}).info.run_id
        for key in PARAMS:
            client.log_param(run_id, key, record.config[key])
        for entry in record.history:
            for key in METRICS:
                client.log_metric(run_id, key, entry[key], step=entry["epoch"])
        client.set_terminated(run_id)
    return CALLED / (time.perf_counter() - begun)


def _overhead(folder: Path, uri: str) -> float:
    """The median of the pairs' ratios, minus 1."""
    from search.ledger import Ledger
    from search.tracking.tracker import Tracker

    (folder / "trained").mkdir()
    ledger, tracker = Ledger(folder / "trained" / "trials"), Tracker(uri, folder / "trained")
    tracker.open_study({}, {}, {}, {}, {}, resume=False)
    context = multiprocessing.get_context("spawn")
    jobs, reports = context.Queue(), context.Queue()
    workers = [context.Process(target=_train, args=(jobs, reports), daemon=True) for _ in range(SIDE_BY_SIDE)]
    for worker in workers:
        worker.start()
    _block(ledger, jobs, reports, "warm-up", None)
    ratios = []
    for pair in range(PAIRS):
        seconds = {}
        for name in ("logged", "plain") if pair % 2 else ("plain", "logged"):
            told = tracker if name == "logged" else None
            seconds[name] = _block(ledger, jobs, reports, f"{name}-{pair}", told)
            if told:
                _drain(uri, ledger)
        ratios.append(seconds["logged"] / seconds["plain"])
        print(f"  {seconds['plain']:6.2f} s without, {seconds['logged']:6.2f} s with", flush=True)
    for _ in workers:
        jobs.put(None)
    if left := tracker.close():
        raise RuntimeError(f"{left} trials were not written")
    return statistics.median(ratios) - 1


def _block(ledger, jobs, reports, name: str, tracker) -> float:
    """Seconds that the trials take whose reports go to the ledger and, where there is one, to the tracker."""
    from search.ledger import TrialRecord
    from trainables.config import TrialConfig

    config = TrialConfig(
        data="digits", img_size=SIZE, max_images=IMAGES, teacher="test_vit", teacher_source="fit", distiller="none",
        student="mixer_nano", epochs=EPOCHS, batch_size=BATCH, stages=[], eps=1.0, teacher_store="off",
    )  # fmt: skip
    begun, running = time.perf_counter(), 0
    for number in range(SIDE_BY_SIDE * TRIALS):
        record = TrialRecord(f"{name}-{number}", "trial", config.model_dump(), {"eps": 1.0})
        jobs.put((record.trial_id, config, str(ledger.trial_folder(record.trial_id))))
        ledger.save(record)
        running += 1
    while running:
        trial_id, metrics = reports.get()
        record = ledger.records[trial_id]
        if metrics is None:
            record.finish()
            running -= 1
        else:
            record.add(metrics)
        ledger.save(record)
        if tracker:
            (tracker.trial_started if record.epoch == 1 and metrics else tracker.trial_changed)(record)
    return time.perf_counter() - begun


def _train(jobs, reports) -> None:
    """A process that trains one trial after another."""
    import torch

    from trainables.assets import Assets
    from trainables.context import RunContext
    from trainables.loop import run_trial

    torch.set_num_threads(1)
    assets = Assets()
    while job := jobs.get():
        trial_id, config, folder = job

        def report(metrics: dict, trial_id=trial_id) -> bool:
            reports.put((trial_id, metrics))
            return True

        run_trial(config, assets, RunContext(Path(folder), report))
        reports.put((trial_id, None))


def _drain(uri: str, ledger) -> None:
    """Waits until the server has all trials that were logged so far, so that the next block is without logging."""
    from search.tracking.store import connect

    client = connect(uri)
    logged = sum(trial_id.startswith("logged") for trial_id in ledger.records)
    while True:
        experiment = client.get_experiment_by_name("trained")
        if len(client.search_runs([experiment.experiment_id], "tags.state = 'complete'", max_results=1000)) >= logged:
            return
        time.sleep(0.5)
