"""A lane's worker: the one module that enters Ray Train. It serves one job after another until it is told to quit.

Rank 0 takes jobs from the broker (search/broker.py) and shares them with the other ranks over a gloo group of its own;
a job is a plain dict: `kind` (`trial` or `teacher`), `trial_id`, `attempt`, `config`, `folder`, `teacher_folder`, and
for a trial `known_epoch`, `test` and `teacher_store`, for a teacher `recipe`.
"""

import gc
import os
import traceback
from datetime import timedelta
from pathlib import Path

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from trainables.assets import Assets
from trainables.config import TrialConfig
from trainables.context import RunContext, TrialFailure
from trainables.errors import InputError
from trainables.files import WARNINGS
from trainables.loop import run_trial
from trainables.teacher import WEIGHTS
from trainables.teacher_job import prepare_teacher

TAKE_WAIT_S = 2.0  # an idle lane's ranks exchange a no-op this often, so that no time-out ends the group
CONTROL_TIMEOUT = timedelta(minutes=30)  # longest wait between ranks: rank 0 waits for Tune's verdict meanwhile


def serve(lane: dict) -> None:
    """Ray Train's loop function: serves jobs until the broker says quit.

    Args:
        lane: `broker` (actor handle), `lane` (its number), `threads` (CPU threads a worker), `gpus` (a worker's;
            below 1 it is a share of one, and others have the rest), `data` (None, or a reference to the study's
            data fields and splits).
    """
    session = ray.train.get_context()
    rank, world_size = session.get_world_rank(), session.get_world_size()
    torch.set_num_threads(lane["threads"])
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read as CUDA comes up; `deterministic` needs it
    device = ray.train.torch.get_device()
    if device.type == "cuda" and lane["gpus"] < 1:  # Ray shares out the time alone, not the memory
        torch.cuda.set_per_process_memory_fraction(lane["gpus"], device)
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT) if world_size > 1 else None
    broker, assets, warnings = lane["broker"], None, []
    messages = RunContext(Path("."), lambda _: True, rank=rank, world_size=world_size, control=control)
    while True:
        job = messages.from_rank_0(lambda: ray.get(broker.take.remote(lane["lane"], os.getpid(), TAKE_WAIT_S)))
        if job == "quit":
            return
        if job is None:
            continue
        if assets is None:
            assets = Assets(device, warn=warnings.append)
            if lane["data"] is not None:
                assets.take(*ray.get(lane["data"]))  # arrays in shared memory, not copies
        ticket = (job["trial_id"], job["attempt"])
        context = RunContext(
            Path(job["folder"]),
            lambda metrics: ray.get(broker.report.remote(*ticket, metrics | _told(warnings))),  # noqa: B023
            rank=rank,
            world_size=world_size,
            device=device,
            control=control,
        )
        outcome = _run(job, assets, context, broker)
        if rank == 0:
            ray.get(broker.finish.remote(*ticket, **outcome))
        _tidy(device)


def _run(job: dict, assets: Assets, context: RunContext, broker) -> dict:
    """Runs one job; its failure is an outcome, but for what poisons the process or may be another rank's death."""
    try:
        config = TrialConfig(**job["config"])
        if job["kind"] == "teacher":
            assets.teacher_weights = None
            return {"result": prepare_teacher(config, job["recipe"], assets, context, Path(job["teacher_folder"]))}
        assets.teacher_weights, assets.teacher_store = Path(job["teacher_folder"]) / WEIGHTS, job["teacher_store"]
        run_trial(config, assets, context, job["known_epoch"], job.get("test", False))
        return {}
    except TrialFailure as error:  # every rank meets it alike
        return {"error": str(error)}
    except Exception as error:
        bad_input = isinstance(error, InputError)
        text = str(error) if bad_input else f"{type(error).__name__}: {error}"
        if not bad_input:
            traceback.print_exc()
        if context.world_size == 1 and not _poisons(error):
            return {"error": text, "bad_input": bad_input}
        # The other ranks may wait for this one. Ray Train starts them all anew, and the broker hands them this trial
        # again, unless another try is in vain.
        ray.get(broker.note.remote(job["trial_id"], job["attempt"], text, bad_input))
        raise


def _told(warnings: list[str]) -> dict[str, list[str]]:
    """The warnings since the last report, which go with the next one."""
    told = list(warnings)
    warnings.clear()
    return {WARNINGS: told} if told else {}


def _poisons(error: Exception) -> bool:
    """A CUDA error other than running out of memory leaves the process unusable: Ray Train starts it anew."""
    return "CUDA error" in str(error) and not isinstance(error, torch.OutOfMemoryError)


def _tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
