"""What may happen to a study on a cluster, done to its real processes."""

import contextlib
from pathlib import Path

import psutil

NAMES = {
    "worker": "ray::RayTrainWorker",
    "proxy": "ray::ImplicitFunc",
    "broker": "ray::Broker",
    "lane": "ray::_Controller",
}


def processes(folder: Path, kind: str) -> list[psutil.Process]:
    """The processes of that kind that belong to the cluster in a folder: `worker` (of Ray Train), `proxy` (a trial's in
    Tune), `broker`, `lane` (its controller), `driver`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            words = process.cmdline()
            if not words or str(folder) not in process.environ().get("OFAKD_TEST", ""):
                continue
            if kind == "driver":
                fits = len(words) > 1 and words[1].endswith("search/run.py")
            else:
                fits = words[0].startswith(NAMES[kind])
            if fits:
                found.append(process)
    return found
