"""The machine's figures beside a trial's own."""

import threading
import time

import psutil
import pytest
import torch
import torch.multiprocessing as multiprocessing

from tests.search.studies import wait_for
from trainables.assets import Assets
from trainables.context import RunContext
from trainables.errors import InputError
from trainables.loop import run_trial
from trainables.pack import Pack, Packed
from trainables.system import SystemMetrics, system_metrics

MACHINE = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
}
GPU = {
    f"system/gpu_0_{name}"
    for name in ("utilization_percentage", "memory_usage_megabytes", "memory_usage_percentage", "power_usage_watts")
}
PLAIN = {"distiller": "none", "stages": [], "eps": 1.0, "epochs": 2}


@pytest.fixture
def metrics():
    made = SystemMetrics([])
    yield made
    made.close()


def samplers():
    return [thread for thread in threading.enumerate() if thread.name == "system-metrics"]


def of_the_system(reported):
    return {name for name in reported if name.startswith("system/")}


def test_the_figures_are_the_machines(metrics):
    end = time.monotonic() + 1.5
    while time.monotonic() < end:  # keeps a core busy, so that there is something to see
        pass
    told, memory = metrics.means(), psutil.virtual_memory()
    assert told.keys() == MACHINE
    assert 10 / psutil.cpu_count() < told["system/cpu_utilization_percentage"] <= 100
    assert told["system/system_memory_usage_megabytes"] == pytest.approx(memory.used / 1e6, rel=0.5)
    share = told["system/system_memory_usage_megabytes"] * 1e6 / memory.total
    assert told["system/system_memory_usage_percentage"] == pytest.approx(100 * share, abs=0.2)


def test_means_are_of_what_came_since_the_last_ones_and_never_empty(metrics, monkeypatch):
    wait_for(lambda: len(metrics._samples.get("system_memory_usage_percentage", ())) >= 2, "two samples")
    assert MACHINE - {"system/cpu_utilization_percentage"} <= metrics.means().keys()
    assert metrics._samples == {}
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(used=123_000_000))
    assert metrics.means()["system/system_memory_usage_megabytes"] == 123.0, "an epoch shorter than a second"


def test_without_a_driver_there_are_no_figures_of_gpus():
    made = SystemMetrics(["00000000-0000-0000-0000-000000000000"])
    try:
        assert made.means().keys() <= MACHINE
    finally:
        made.close()
    assert not samplers()


@pytest.mark.parametrize("wanted", [False, True])
def test_each_report_has_them_where_they_are_wanted(tiny, tmp_path, wanted):
    reports, threads = [], []

    def report(metrics):
        reports.append(metrics)
        threads.append(len(samplers()))
        return True

    run_trial(tiny(**PLAIN, system_metrics=wanted), Assets(), RunContext(tmp_path, report))
    for reported in reports:
        assert of_the_system(reported) == (MACHINE if wanted else set())
    assert threads == [int(wanted)] * 2 and not samplers()


def test_they_change_nothing_of_a_trial(tiny, tmp_path):
    told = []
    for name, wanted in (("with", True), ("without", False)):
        reports = []
        context = RunContext(tmp_path / name, lambda one, kept=reports: kept.append(one) or True)
        run_trial(tiny(**PLAIN, system_metrics=wanted), Assets(), context)
        own = ("train/", "val/", "best/")
        told.append([{key: value for key, value in one.items() if key.startswith(own)} for one in reports])
    assert told[0] == told[1]


def test_a_failing_trial_leaves_no_thread(tiny, tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_trial(tiny(**PLAIN, system_metrics=True), Assets(), RunContext(tmp_path, lambda metrics: 1 / 0))
    assert not samplers()


def test_packed_trials_have_them_and_share_what_they_read(tiny, tmp_path):
    pack, reports, ended = Pack(Assets(), 3), {}, {}

    def packed(name, **changes):
        def report(metrics):
            reports.setdefault(name, []).append(of_the_system(metrics))
            return name != "stopped"

        context = RunContext(tmp_path / name, report)
        return Packed(tiny(**PLAIN | changes), context, 0, False, lambda error: ended.update({name: error}))

    pack.begin([
        packed("with", system_metrics=True), packed("stopped", system_metrics=True, lr=1e-3), packed("without"),
        packed("unfit", system_metrics=True, student="nosuch_model"),
    ])  # fmt: skip
    assert len(pack._cohorts) == 1 and len(samplers()) == 2
    while len(pack):
        pack.advance()
    assert reports == {"with": [MACHINE] * 2, "stopped": [MACHINE], "without": [set()] * 2}
    assert isinstance(ended.pop("unfit"), InputError) and set(ended.values()) == {None}
    assert not samplers()


def _worker(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = system_metrics(RunContext(folder, lambda metrics: True, rank=rank, world_size=2))
    (folder / str(rank)).write_text(" ".join(sorted(found.means())) if found else "none")
    if found:
        found.close()
    torch.distributed.destroy_process_group()


def test_of_several_workers_the_first_tells(tmp_path):
    multiprocessing.spawn(_worker, (tmp_path,), nprocs=2)
    assert set((tmp_path / "0").read_text().split()) <= MACHINE and (tmp_path / "1").read_text() == "none"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_is_the_one_that_the_worker_has(tmp_path):
    taken = torch.ones(2**28, device="cuda")
    made = system_metrics(RunContext(tmp_path, lambda metrics: True, device="cuda"))
    try:
        torch.cuda.synchronize()
        told = made.means()
    finally:
        made.close()
    assert GPU <= told.keys() <= MACHINE | GPU  # the CPUs' clock may not have ticked
    assert (
        told["system/gpu_0_memory_usage_megabytes"] > taken.nbytes / 1e6 and told["system/gpu_0_power_usage_watts"] > 0
    )
