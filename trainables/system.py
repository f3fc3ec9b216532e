"""How busy the machine is while a trial trains, by the names that MLflow's UI shows as system metrics.

The figures are the machine's, whoever else uses it; a GPU's are there where NVIDIA's driver is.
Source: the names and units of mlflow/system_metrics/metrics.
"""

import socket
import threading
from collections.abc import Callable

import psutil
import torch

from trainables.context import RunContext

EVERY_S = 1.0


class SystemMetrics:
    """Samples the machine each second, in a thread of its own, until it is closed.

    Args:
        gpus: the UUIDs of the GPUs to look at, as NVML has them; `gpu_0` is the first.
    """

    def __init__(self, gpus: list[str]):
        self._gpus, self._leave = _open_gpus(gpus)
        self._samples: dict[str, list[float]] = {}
        self._cpu = _cpu_seconds()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="system-metrics", daemon=True)
        self._thread.start()

    def means(self) -> dict[str, float]:
        """The means since the last call, of one sample now where there is none: percent, megabytes and watts."""
        with self._lock:
            if not self._samples:
                self._sample()
            samples, self._samples = self._samples, {}
        return {f"system/{name}": round(sum(values) / len(values), 1) for name, values in samples.items()}

    def close(self) -> None:
        """Ends the thread."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            self._leave()

    def _work(self) -> None:
        while not self._closed.wait(EVERY_S):
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        busy, all_ = _cpu_seconds()
        was_busy, was_all = self._cpu
        if all_ > was_all:  # the clock has ticked
            self._cpu = busy, all_
            self._keep("cpu_utilization_percentage", min(100.0, max(0.0, 100 * (busy - was_busy) / (all_ - was_all))))
        memory = psutil.virtual_memory()
        self._keep("system_memory_usage_megabytes", memory.used / 1e6)
        self._keep("system_memory_usage_percentage", 100 * memory.used / memory.total)
        for index, gpu in enumerate(self._gpus):
            for name, value in _gpu_figures(gpu).items():
                self._keep(f"gpu_{index}_{name}", value)

    def _keep(self, name: str, value: float) -> None:
        self._samples.setdefault(name, []).append(value)


def system_metrics(context: RunContext) -> SystemMetrics | None:
    """Begins to sample, on rank 0; every rank calls it, since the GPUs of all that are on rank 0's machine count."""
    places = context.gather((socket.gethostname(), _uuid(context.device)))
    if places is None:
        return None
    here = places[0][0]
    return SystemMetrics(list(dict.fromkeys(uuid for host, uuid in places if host == here and uuid)))


def _cpu_seconds() -> tuple[float, float]:
    """The seconds that all CPUs were busy since the machine started, and those that passed."""
    times = psutil.cpu_times()
    all_ = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)  # which `user` has already
    return all_ - times.idle - getattr(times, "iowait", 0.0), all_


def _uuid(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    return str(torch.cuda.get_device_properties(device).uuid)


def _open_gpus(uuids: list[str]) -> tuple[list, Callable[[], None]]:
    """NVML's handles of the GPUs that it knows, and what leaves NVML."""
    if not uuids:
        return [], lambda: None
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return [], lambda: None
    handles = []
    for uuid in uuids:
        for kind in ("GPU-", "MIG-"):
            try:
                handles.append(pynvml.nvmlDeviceGetHandleByUUID(kind + uuid))
                break
            except pynvml.NVMLError:
                continue
    return handles, pynvml.nvmlShutdown


def _gpu_figures(gpu) -> dict[str, float]:
    """What NVML tells of a GPU now; a part of one (MIG) has its memory alone."""
    import pynvml

    def memory() -> dict[str, float]:
        found = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        return {
            "memory_usage_megabytes": found.used / 1e6,
            "memory_usage_percentage": 100 * found.used / found.total,
        }

    figures: dict[str, float] = {}
    for read in (
        lambda: {"utilization_percentage": pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu},
        memory,
        lambda: {"power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000},
    ):
        try:
            figures |= read()
        except pynvml.NVMLError:  # this one does not tell
            continue
    return figures
