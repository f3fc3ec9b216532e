"""Lanes: long-lived Ray Train runs of K workers, each serving one trial after another.

On a machine of one's own all lanes stand as long as the study. In a cluster a lane is asked for when there is a trial
for it and given back when there is none, so that nodes come and go; until it has a place, it says why.
"""

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from search.nodes import name_of, unfit
from search.placement import bundles, look, why_waiting
from search.settings import Settings
from trainables.config import data_fields
from trainables.errors import InputError, StudyError

RESTARTS = 3  # in a row, of a lane whose Ray Train run itself ended; a worker's death is Ray Train's own business
QUIT_S = 120.0  # a lane that is just coming up quits once it stands; Ray must not go before its thread has ended
TURN_S = 0.5  # how often it is looked after how many lanes are wanted
LOOK_S = 2.0  # how often the cluster is asked why a lane waits
IDLE_S = 10.0  # for so long a lane must have been one too many before it is given back: the final follows the search
PLACE_S = "20"  # of Ray Train, for a worker group's place that was lost with a node: then the lane asks for another
FULL_S = 600.0  # how long lanes keep away from a node whose disk was full, before one tries it again
NO_PLACE = "startup timed out"  # in Ray Train's words

WAITING, STARTING, UP = "waiting", "starting", "up"

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
    for number in itertools.count():
        event = broker.next.remote(trial_id, number)
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


@dataclass
class Lane:
    """One lane that is wanted, as it stands."""

    number: int
    state: str = WAITING
    since: float = field(default_factory=time.monotonic)  # in this state
    reason: str = ""  # why it waits

    def becomes(self, state: str) -> None:
        """Notes a new state."""
        self.state, self.since, self.reason = state, time.monotonic(), ""


class Lanes:
    """Brings up the lanes in threads of the driver, and takes them down.

    Args:
        broker: the broker's actor handle.
        settings: how many lanes at most, workers, CPUs and GPUs; in a cluster of others' (`address`) as many of them as
            there is work for.
        folder: where Ray Train may keep its own files.
        splits: the data; what is in memory goes to Ray's object store, where all lanes of a node read one copy.

    Attributes:
        note: told, in one line, of nodes that get no lane.
        work: how many trials there still are to train, those at work included; only asked in a cluster.
        share: how many lanes this study may have beside others; None: as many as it asks for.
    """

    def __init__(self, broker, settings: Settings, folder: Path, splits=None):
        # Here: in the main thread, and not where a study is simulated, which goes without torch.
        import ray.train.torch

        import trainables.lane  # noqa: F401

        self._broker, self._settings, self._folder = broker, settings, Path(folder)
        shared = splits is not None and splits.in_memory
        self._data = ray.put((data_fields(settings), splits)) if shared else None
        self.note: Callable[[str], None] = log.warning
        self.work: Callable[[], int] = lambda: 1  # the teacher
        self.share: Callable[[], int | None] = lambda: None
        self._elastic = settings.address is not None
        self._fit: set[str] = set()  # nodes
        self._unfit: dict[str, str] = {}  # nodes, with what is wrong there
        self._full: dict[str, tuple[float, str]] = {}  # the same of their disks, until when
        self._disks_heard = 0
        if self._elastic:
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", PLACE_S)
        self._closing = threading.Event()
        self._lost: dict[int, str] = {}
        self._lanes: dict[int, Lane] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._given_up: set[int] = set()  # lanes that wait, or come up, and are not wanted any more
        self._too_many_since: float | None = None
        self._looked, self._stood = 0.0, False
        self._limited: tuple[float, int] | None = None  # since when the share is less than there is work for
        self._keeper = threading.Thread(target=self._keep_count, name="lanes", daemon=True)

    def start(self) -> None:
        """Starts as many lanes as are wanted; returns at once. Where all stand from the beginning, the others follow
        the first, which the teacher waits for: starting them together makes all of them late where cores are few."""
        self._keeper.start()

    def all_lost(self) -> str | None:
        """Why no lane is left, None while one is. Where none has ever stood, two that were lost stand for all."""
        enough = self._settings.lanes if self._stood else min(self._settings.lanes, 2)
        return "; ".join(self._lost.values()) if len(self._lost) >= enough else None

    def room(self) -> int:
        """For how many trials there is a lane, or one that is coming up."""
        if not self._elastic:
            return self._settings.concurrency
        return self._settings.pack * sum(lane.state != WAITING for lane in list(self._lanes.values()))

    def demand(self) -> tuple[int, int, float]:
        """How many lanes there is work for, how many have a place, and for how many seconds the first has waited."""
        here = list(self._lanes.values())
        waits = [time.monotonic() - lane.since for lane in here if lane.state == WAITING]
        needed = min(self._settings.lanes, -(-self.work() // self._settings.pack))
        return needed, len(here) - len(waits), max(waits, default=0.0)

    def standing(self) -> list[Lane]:
        """All lanes that there is work for now, as they stand; those above the study's share wait."""
        above = []
        if self._limited:
            since, share = self._limited
            needed, *_ = self.demand()
            reason = f"the study's share of the cluster, beside other studies, is {share}"
            above = [Lane(-1, WAITING, since, reason) for _ in range(needed - len(self._lanes))]
        return [*self._lanes.values(), *above]

    def close(self) -> bool:
        """Waits for the lanes to quit (the broker was closed before); False where some did not in time."""
        self._closing.set()
        deadline = time.monotonic() + QUIT_S
        for thread in [self._keeper, *self._threads.values()]:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads.values())

    def _keep_count(self) -> None:
        """The keeper's thread: as many lanes as are wanted, no more and no less."""
        turn = 0
        while not self._closing.wait(TURN_S if turn else 0):
            turn += 1
            try:
                self._note_who_stands()
                self._adjust(self._wanted())
                self._say_why()
            except Exception:  # a cluster that is hard to reach for a moment; the next turn may do
                log.exception("looking after the lanes")

    def _wanted(self) -> int:
        most = self._settings.lanes
        if not self._elastic:
            first = self._lanes.get(0)
            return most if 0 in self._lost or (first and first.state == UP) else 1
        needed, *_ = self.demand()
        share = self.share()
        if share is None or share >= needed:
            self._limited = None
            return needed
        since = self._limited[0] if self._limited else time.monotonic()
        self._limited = since, share
        return share

    def _adjust(self, wanted: int) -> None:
        here = [lane for lane in self._lanes.values() if lane.number not in self._given_up]
        if len(here) <= wanted or not self._elastic:
            self._too_many_since = None
        if len(here) < wanted:
            free = [number for number in range(self._settings.lanes) if number not in self._threads]
            for number in free[: wanted - len(here)]:
                self._lanes[number] = Lane(number)
                thread = threading.Thread(target=self._keep, args=(number,), name=f"lane-{number}", daemon=True)
                self._threads[number] = thread
                thread.start()
        elif len(here) > wanted and self._elastic:
            self._too_many_since = self._too_many_since or time.monotonic()
            if time.monotonic() - self._too_many_since >= IDLE_S:
                self._give_back(here, len(here) - wanted)

    def _give_back(self, here: list[Lane], count: int) -> None:
        """Lets so many lanes go: those that wait first, then those that are coming up, the idle, and others."""
        at_work = set(ray.get(self._broker.at_work.remote()).values())
        order = {WAITING: 0, STARTING: 1, UP: 2}
        here = sorted(here, key=lambda lane: (order[lane.state], lane.number in at_work, -lane.number))
        for lane in here[:count]:
            self._given_up.add(lane.number)
            if lane.state != WAITING:
                ray.get(self._broker.leave.remote(lane.number))

    def _note_who_stands(self) -> None:
        asked = ray.get(self._broker.lanes.remote())
        for lane in list(self._lanes.values()):
            if lane.state == STARTING and lane.number in asked:
                lane.becomes(UP)
                self._stood = True

    def _say_why(self) -> None:
        waiting = [lane for lane in self._lanes.values() if lane.state == WAITING]
        if waiting and time.monotonic() - self._looked > LOOK_S:
            avoided = self._avoided()
            why = why_waiting(bundles(self._settings), look(without=avoided))
            self._looked = time.monotonic()
            for lane in waiting:
                lane.reason = "; ".join([why, *avoided.values()])

    def _keep(self, number: int) -> None:
        """One lane's thread: its place, its Ray Train run, and another where that one ended unasked."""
        lane, failures, error = self._lanes[number], 0, "it ended"
        while failures <= RESTARTS and self._is_wanted(number):
            try:
                self._serve(lane)
            except Exception as caught:
                error = str(caught) if isinstance(caught, StudyError) else f"{type(caught).__name__}: {caught}"
                log.exception("lane %d ended", number)
                if not (self._elastic and NO_PLACE in error):
                    failures = failures + 1 if time.monotonic() - lane.since < QUIT_S else 1
            try:
                if ray.get(self._broker.lane_left.remote(number)):
                    failures = 0  # what kills a lane amid a trial is counted by the broker, trial by trial
            except Exception:  # a broker that is coming back; it hears of the lane's next one
                log.exception("lane %d: the broker does not answer", number)
            lane.becomes(WAITING)
        if failures > RESTARTS and not self._closing.is_set():
            self._lost[number] = f"lane {number} was lost: {error.splitlines()[0]}"
        self._given_up.discard(number)
        del self._lanes[number]
        if number not in self._lost:
            del self._threads[number]  # last: from now on it may be wanted again

    def _serve(self, lane: Lane) -> None:
        """Waits for a lane's place and serves there, until the run ends or the lane is not wanted any more."""
        avoided = self._avoided()
        place = self._ask_for_place(lane.number, avoided)
        try:
            while not place.wait(1):
                if not self._is_wanted(lane.number):
                    return
                if avoided.keys() != self._avoided().keys():
                    avoided = self._avoided()
                    remove_placement_group(place)
                    place = self._ask_for_place(lane.number, avoided)
            lane.becomes(STARTING)
            fit = not self._elastic or self._check_nodes(place)
            if fit and self._is_wanted(lane.number):
                self._trainer(lane.number, place).fit()
        finally:
            if self._elastic:
                self._hear_of_disks()  # before another lane gets the place
            remove_placement_group(place)

    def _is_wanted(self, number: int) -> bool:
        return not self._closing.is_set() and number not in self._given_up

    def _ask_for_place(self, number: int, avoided: Collection[str]) -> PlacementGroup:
        """Room for all its workers, on nodes that are not known to be unfit."""
        wanted, others = bundles(self._settings), {"ray.io/node-id": f"!in({','.join(avoided)})"}
        selectors = [others] * len(wanted) if avoided else None
        return placement_group(wanted, name=f"lane-{number}", bundle_label_selector=selectors)

    def _check_nodes(self, place: PlacementGroup) -> bool:
        """Looks at nodes that no lane has been on, as in a cluster they come while the study runs; False where the lane
        is to ask for other ones."""
        placed = set(placement_group_table(place)["bundles_to_node_id"].values())
        if placed & self._avoided().keys():  # found out meanwhile
            return False
        new = placed - self._fit
        wrong = unfit(new, self._settings.storage) if new else {}
        for node in wrong.keys() - self._unfit.keys():
            self._unfit[node] = wrong[node]
            self.note(wrong[node])
        self._fit |= new - wrong.keys()
        return not wrong

    def _avoided(self) -> dict[str, str]:
        """The nodes that no lane may have now, with the reason."""
        now = time.monotonic()
        return self._unfit | {node: why for node, (until, why) in list(self._full.items()) if now < until}

    def _hear_of_disks(self) -> None:
        """Keeps lanes away for a while from nodes where trials had no room on a disk."""
        try:
            told = ray.get(self._broker.disks.remote())
            for node, error in told[self._disks_heard :]:
                why = f"disk: node {name_of(node)} has no room for what trials write ({error})"
                if node not in self._avoided():
                    self.note(f"{why}; it gets no lane for {FULL_S / 60:.0f} minutes")
                self._full[node] = time.monotonic() + FULL_S, why
            self._disks_heard = len(told)
        except Exception:  # a broker or a cluster that is hard to reach for a moment; the next lane's end asks again
            log.exception("looking for full disks")

    def _trainer(self, number: int, place: PlacementGroup):
        from search.lane_network import LaneTorchConfig
        from search.lane_trainer import LaneTrainer
        from trainables.lane import serve

        settings = self._settings
        *_, one = bundles(settings)
        gpus = one.get("GPU", 0.0)
        return LaneTrainer(
            serve,
            place=place,
            train_loop_config={
                "broker": self._broker,
                "lane": number,
                "threads": settings.cpus_per_worker,
                "gpus": gpus,
                "pack": settings.pack,
                "data": self._data,
                "elsewhere": self._elastic,
            },
            torch_config=LaneTorchConfig(backend="nccl" if gpus >= 1 else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=settings.workers_per_trial,
                use_gpu=gpus > 0,
                resources_per_worker=one,
            ),
            run_config=ray.train.RunConfig(
                name=f"lane-{number}",
                storage_path=str(self._folder.resolve()),
                # A worker's death is no trial's failure: the broker counts attempts by trial, so no limit here. Where a
                # cluster has taken the place back, the lane waits for another, where it can say why.
                failure_config=ray.train.FailureConfig(
                    max_failures=-1, controller_failure_limit=0 if self._elastic else RESTARTS
                ),
            ),
        )
