"""Lanes: long-lived Ray Train runs of K workers, each serving one trial after another."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray

from search.settings import Settings
from trainables.config import data_fields
from trainables.errors import InputError, StudyError

RESTARTS = 3  # of a lane whose Ray Train run itself ended; a worker's death is Ray Train's own business
QUIT_S = 120.0  # a lane that is just coming up quits once it stands; Ray must not go before its thread has ended

log = logging.getLogger(__name__)


def follow(
    broker,
    lanes: "Lanes",
    trial_id: str,
    on_report: Callable[[dict], None],
    interrupted: Callable[[], bool],
) -> dict | None:
    """Waits for a job that was submitted outside Tune, passing its reports on.

    Returns:
        Its result, {} where it has none; None where it was interrupted.

    Raises:
        StudyError: it failed, or no lane is left.
        InputError: the job asks for what cannot be.
    """
    while True:
        event = broker.next.remote(trial_id)
        while not ray.wait([event], timeout=0.5)[0]:
            if interrupted():
                return None
            if lost := lanes.all_lost():
                raise StudyError(lost)
        kind, payload = ray.get(event)
        if kind == "report":
            on_report(payload)
        elif kind == "bad_input":
            raise InputError(payload)
        elif kind == "failed":
            raise StudyError(payload)
        else:
            return None if kind == "stopped" else payload or {}


class Lanes:
    """Brings up the lanes in threads of the driver, and takes them down.

    Args:
        broker: the broker's actor handle.
        settings: how many lanes, workers, CPUs and GPUs.
        folder: where Ray Train may keep its own files.
        splits: the data; what is in memory goes to Ray's object store, where all lanes of a node read one copy.
    """

    def __init__(self, broker, settings: Settings, folder: Path, splits=None):
        # Here: in the main thread, and not where a study is simulated, which goes without torch.
        import ray.train.torch

        import trainables.lane  # noqa: F401

        self._broker, self._settings, self._folder = broker, settings, Path(folder)
        shared = splits is not None and splits.in_memory
        self._data = ray.put((data_fields(settings), splits)) if shared else None
        self._closing = threading.Event()
        self._lost: dict[int, str] = {}
        self._threads = [
            threading.Thread(target=self._keep, args=(number,), name=f"lane-{number}", daemon=True)
            for number in range(settings.lanes)
        ]

    def start(self) -> None:
        """Starts all lanes; returns at once. The others follow the first, which the teacher waits for: starting them
        together makes all of them late where cores are few."""
        for thread in self._threads:
            thread.start()

    def all_lost(self) -> str | None:
        """Why no lane is left, None while one is."""
        return "; ".join(self._lost.values()) if len(self._lost) == len(self._threads) else None

    def close(self) -> bool:
        """Waits for the lanes to quit (the broker was closed before); False where some did not in time."""
        self._closing.set()
        deadline = time.monotonic() + QUIT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _keep(self, number: int) -> None:
        """One lane's thread: its Ray Train run, and another where that one ended unasked."""
        error = "it ended"
        while number > 0 and not self._first_stands():
            time.sleep(0.5)
        for _ in range(1 + RESTARTS):
            if self._closing.is_set():
                return
            try:
                self._trainer(number).fit()
            except Exception as caught:
                error = f"{type(caught).__name__}: {caught}"
                log.exception("lane %d ended", number)
        if not self._closing.is_set():
            ray.get(self._broker.lane_lost.remote(number))
            self._lost[number] = f"lane {number} was lost: {error.splitlines()[0]}"

    def _first_stands(self) -> bool:
        return self._closing.is_set() or 0 in self._lost or bool(ray.get(self._broker.lanes.remote()))

    def _trainer(self, number: int):
        from ray.train.torch import TorchConfig, TorchTrainer

        from trainables.lane import serve

        settings = self._settings
        gpus = settings.gpus_per_lane / settings.workers_per_trial
        return TorchTrainer(
            serve,
            train_loop_config={
                "broker": self._broker,
                "lane": number,
                "threads": settings.cpus_per_worker,
                "gpus": gpus,
                "pack": settings.pack,
                "data": self._data,
            },
            torch_config=TorchConfig(backend="nccl" if gpus >= 1 else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=settings.workers_per_trial,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": settings.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
            ),
            run_config=ray.train.RunConfig(
                name=f"lane-{number}",
                storage_path=str(self._folder.resolve()),
                # A worker's death is no trial's failure: the broker counts attempts by trial, so no limit here.
                failure_config=ray.train.FailureConfig(max_failures=-1, controller_failure_limit=3),
            ),
        )
