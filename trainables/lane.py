"""A lane's worker: the one module that enters Ray Train. It serves jobs until it is told to quit.

Rank 0 takes jobs from the broker (search/broker.py) and shares them with the other ranks over a gloo group of its own;
a job is a plain dict: `kind` (`trial` or `teacher`), `trial_id`, `attempt`, `alone` (it must not be packed), `config`,
`met` (what ended its last attempt), `waited_s` (until lanes took it, all attempts together), `folder`,
`teacher_folder`, and for a trial `known_epoch`, `test` and `teacher_store`, for a teacher `recipe`. Where these folders
lie in an object store, `remote`, `teacher_remote` and `storage` are their URLs and that of everything (`job_files.py`);
else `remote` is None.
"""

import gc
import os
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.v2._internal.execution.context import get_train_context

from trainables.assets import Assets
from trainables.config import TrialConfig
from trainables.context import RunContext, TrialFailure
from trainables.disk import names_another_place, of_disk
from trainables.errors import InputError, one_line
from trainables.files import LEAVE, WARNINGS
from trainables.job_files import JobFiles, files_of
from trainables.loop import run_trial
from trainables.pack import Pack, Packed
from trainables.persist import WAIT_S
from trainables.step import NOT_CAPTURED
from trainables.teacher import WEIGHTS
from trainables.teacher_job import prepare_teacher
from trainables.trial_log import hear

TAKE_WAIT_S = 2.0  # an idle lane's ranks exchange a no-op this often, so that no time-out ends the group
# Longest wait between ranks: rank 0 waits for the store and for Tune's verdict meanwhile
CONTROL_TIMEOUT = timedelta(seconds=WAIT_S, minutes=30)
GATHER_S = 1.0  # packed trials that come this soon after one another begin together, and so read the same batches


def serve(lane: dict) -> None:
    """Ray Train's loop function: serves jobs until the broker says quit.

    Args:
        lane: `broker` (actor handle), `lane` (its number), `threads` (CPU threads a worker), `gpus` (a worker's;
            below 1 it is a share of one, and others have the rest), `pack` (how many trials it trains side by side),
            `data` (None, or a reference to the study's data fields and splits), `elsewhere` (whether there may be
            other nodes, for what this one's disk has no room for).
    """
    session = ray.train.get_context()
    rank, world_size = session.get_world_rank(), session.get_world_size()
    torch.set_num_threads(lane["threads"])
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read as CUDA comes up; `deterministic` needs it
    device = ray.train.torch.get_device()
    if device.type == "cuda" and lane["gpus"] < 1:  # Ray shares out the time alone, not the memory
        torch.cuda.set_per_process_memory_fraction(lane["gpus"], device)
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT) if world_size > 1 else None
    place = {"rank": rank, "world_size": world_size, "device": device, "control": control, "leaving": _about_to_go}
    process = ray.get_runtime_context()
    own = {"node": process.get_node_id(), "actor": process.get_actor_id()}
    ranks = [own] * world_size
    if control:
        dist.all_gather_object(ranks, own, group=control)
    who = {"pid": os.getpid(), "handle": process.current_actor, "ranks": ranks}
    worker = Worker(lane, partial(RunContext, **place), who)
    if lane["pack"] > 1:
        worker.serve_packed(lane["pack"])
    else:
        worker.serve()


class Worker:
    """One rank of a lane.

    Args:
        lane: as for `serve`.
        place: makes a RunContext, given a folder and a report.
        who: what the broker's `take` is told of this process and the other ranks'.
    """

    def __init__(self, lane: dict, place: Callable[..., RunContext], who: dict):
        self._lane, self._broker, self._place, self._who = lane, lane["broker"], place, who
        self._messages = place(Path("."), lambda _: True)
        self._warnings: SimpleQueue[str] = SimpleQueue()  # until a report takes them along
        self._assets: Assets | None = None
        self._at_work: dict[str, dict] = {}  # a pack's jobs
        self._left: set[str] = set()  # trials that are to go on elsewhere

    def serve(self) -> None:
        """One job after another, until the broker says quit or the machine is about to go."""
        while not self._messages.must_leave(0):
            job = self._messages.from_rank_0(lambda: ray.get(self._take()))
            if job == "quit" or (job is not None and not self._do(job)):
                return

    def serve_packed(self, size: int) -> None:
        """Trials side by side, up to so many."""
        pack: Pack | None = None
        asked: Future | None = None
        gathered, came, quitting = [], 0.0, False
        while not quitting or self._at_work:
            quitting = quitting or self._messages.leaving()
            alone = any(job["alone"] for job in self._at_work.values())
            room = not (quitting or alone) and len(self._at_work) < size
            if room and asked is None:
                asked = self._take().future()
            if asked and not pack:
                wait([asked], GATHER_S if gathered else None)
            if asked and asked.done():
                job, asked = asked.result(), None
                if job == "quit":
                    quitting = True
                    for waiting in gathered:
                        del self._at_work[waiting["trial_id"]]
                        self._give_back(waiting)
                    gathered = []
                elif job and job["kind"] == "teacher":
                    self._do(job)
                elif job:
                    self._got(job)
                    gathered.append(job)
                    self._at_work[job["trial_id"]], came = job, time.monotonic()
            elif gathered and (not room or time.monotonic() - came >= GATHER_S):
                assets = self._ready_assets(gathered[0], self._files(gathered[0]))
                pack = Pack(assets, size) if pack is None else pack
                _tidy(self._messages.device)  # after those that have ended
                pack.begin([self._packed(job, size) for job in gathered])
                gathered = []
            if pack:
                pack.advance()

    def _take(self):
        return self._broker.take.remote(self._lane["lane"], self._who, TAKE_WAIT_S, list(self._at_work))

    def _got(self, job: dict) -> None:
        if self._messages.rank == 0:
            self._broker.begun.remote(job["trial_id"], job["attempt"])

    def _do(self, job: dict) -> bool:
        """Does one job from its beginning to its end; False where it was paused, since the machine is about to go."""
        self._got(job)
        files = self._files(job)
        context = self._context(job, files)
        try:
            files.bring()
            placed = {**job, "teacher_folder": str(files.teacher)}
            result = _run(placed, self._ready_assets(job, files), context)
        except Exception as error:
            files.end(failed=True)
            self._finish(job, **self._failure(job, error))
        else:
            files.end(failed=False)
            if context.paused:
                self._left.add(job["trial_id"])
            self._finish(job, result=result)
        _tidy(self._messages.device)
        return not context.paused

    def _packed(self, job: dict, size: int) -> Packed:
        files = self._files(job)
        try:
            files.bring()
        except Exception as error:
            self._note(job, error, one_line(error))
            raise

        def ended(error: Exception | None) -> None:
            files.end(failed=error is not None)
            del self._at_work[job["trial_id"]]
            if isinstance(error, torch.OutOfMemoryError) and not job["alone"]:  # whose fault it is, is not known
                self._warnings.put(f"pack: {size} trials do not fit into the GPU's memory together; lower it")
                self._give_back(job, alone=True)
            else:
                self._finish(job, **(self._failure(job, error) if error else {}))

        return Packed(_config(job), self._context(job, files), job["known_epoch"], job.get("test", False), ended)

    def _files(self, job: dict) -> JobFiles:
        def waits() -> None:
            for one in [job, *list(self._at_work.values())]:  # in a pack all wait
                self._broker.waits.remote(one["trial_id"], one["attempt"])

        return files_of(job, self._messages.rank, self._warn, waits)

    def _ready_assets(self, job: dict, files: JobFiles) -> Assets:
        if self._assets is None:
            self._assets = Assets(self._messages.device, warn=self._warn)
            if self._lane["data"] is not None:
                self._assets.take(*ray.get(self._lane["data"]))  # arrays in shared memory, not copies
        teaches = job["kind"] == "trial"
        self._assets.teacher_weights = files.teacher / WEIGHTS if teaches else None
        self._assets.teacher_store = job["teacher_store"] if teaches else None
        return self._assets

    def _context(self, job: dict, files: JobFiles) -> RunContext:
        ticket = job["trial_id"], job["attempt"]

        def report(metrics: dict) -> bool:
            files.keep()  # before it counts
            waited = {"time/waited_s": job["waited_s"]}
            answer = ray.get(self._broker.report.remote(*ticket, metrics | waited | self._told()))
            last = job["kind"] != "trial" or metrics["epoch"] >= job["config"]["epochs"]
            if answer and not last and (answer == LEAVE or self._messages.leaving()):
                self._left.add(job["trial_id"])
                return False
            return bool(answer)

        return self._place(files.folder, report, shared=files.shared)

    def _warn(self, line: str) -> None:
        hear(f"warning: {line}")  # in the trial's log, too
        self._warnings.put(line)

    def _told(self) -> dict[str, list[str]]:
        """The warnings since the last report, which go with the next one."""
        told = []
        with suppress(Empty):
            while True:
                told.append(self._warnings.get_nowait())
        return {WARNINGS: told} if told else {}

    def _failure(self, job: dict, error: Exception) -> dict:
        """The outcome of a job that failed, but for what poisons the process, is the node's disk's, or may be another
        rank's death: that is raised, so that Ray Train starts all ranks anew. The broker hands them or others this job
        again, unless that is in vain; a lane whose disk is full would else fail all jobs in a moment.
        """
        if isinstance(error, TrialFailure):  # every rank meets it alike
            return {"error": str(error)}
        bad_input = isinstance(error, InputError)
        text = str(error) if bad_input else f"{type(error).__name__}: {error}"
        if not bad_input:
            traceback.print_exception(error)
        if self._messages.world_size == 1 and not _poisons(error) and (bad_input or not of_disk(error)):
            return {"error": text, "bad_input": bad_input}
        self._note(job, error, text, bad_input)
        raise error

    def _note(self, job: dict, error: Exception, text: str, hopeless: bool = False) -> None:
        disk = not hopeless and of_disk(error)
        own = job.get("remote") or names_another_place(error, job["folder"])
        node = self._who["ranks"][self._messages.rank]["node"] if disk and own and self._lane["elsewhere"] else None
        ray.get(self._broker.note.remote(job["trial_id"], job["attempt"], text, hopeless, disk, node))

    def _finish(self, job: dict, **outcome) -> None:
        if self._messages.rank != 0:
            return
        if job["trial_id"] in self._left and "error" not in outcome:
            self._left.discard(job["trial_id"])
            self._give_back(job)
        else:
            ray.get(self._broker.finish.remote(job["trial_id"], job["attempt"], **outcome))

    def _give_back(self, job: dict, alone: bool = False) -> None:
        """Leaves a trial to another lane, from its checkpoint on."""
        ray.get(self._broker.give_back.remote(job["trial_id"], job["attempt"], alone))


def _about_to_go() -> bool:
    """Whether the node of one of this lane's workers is being drained: a spot machine with its warning, say.

    What Ray Train's watcher told this worker: `ray.train.get_preemption_info` gives the same, but asks an actor and all
    ranks each time, and this is asked at each step.
    """
    return get_train_context().preemption_context.preemption_info is not None


def _run(job: dict, assets: Assets, context: RunContext) -> dict | None:
    """Does a job; the result of a teacher's."""
    config = _config(job)
    if job["kind"] == "teacher":
        return prepare_teacher(config, job["recipe"], assets, context, Path(job["teacher_folder"]))
    run_trial(config, assets, context, job["known_epoch"], job.get("test", False))
    return None


def _config(job: dict) -> TrialConfig:
    """A job's configuration; without a graph where its last attempt failed in capturing one."""
    config = TrialConfig(**job["config"])
    return config.model_copy(update={"cuda_graph": False}) if NOT_CAPTURED in job.get("met", "") else config


def _poisons(error: Exception) -> bool:
    """A CUDA error other than running out of memory leaves the process unusable: Ray Train starts it anew."""
    return "CUDA error" in str(error) and not isinstance(error, torch.OutOfMemoryError)


def _tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
