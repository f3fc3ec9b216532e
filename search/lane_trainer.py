"""A lane's Ray Train run: with the processes that it needs, and in a place of its own that it keeps.

Ray Train asks the cluster for each worker group's place itself, and gives it up when a worker dies: between a lane's
waiting for a place and its start, and again before each restart, another lane would take it; and the place of a
controller that was killed stays taken. So the lane asks, and its worker groups come into what it has. Nothing public
offers that: `worker_group_cls` and the methods below are Ray Train's own, and Ray is pinned.
"""

import os
from collections import defaultdict

import ray
from ray.runtime_context import get_runtime_context
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.preemption import PreemptionWatcher
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PLACE = "OFAKD_LANE_PLACE"  # in the controller's environment: the placement group's id


class _Kept(DefaultPlacementGroupHandle):
    def shutdown(self) -> None:
        """Nothing: whoever asked for the place gives it back."""


class _InItsPlace(WorkerGroup):
    def _create_placement_group(self, scaling_config, worker_group_context):
        identity = ray.PlacementGroupID(bytes.fromhex(os.environ[PLACE]))
        return _Kept(PlacementGroup(identity))


class _WatchedFromHere(PreemptionCallback):
    """Ray's, but for where the watcher runs: at random it would hold a node that has nothing else to do."""

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        self._stop_watcher()
        workers = {one.distributed_context.world_rank: one for one in worker_group.get_workers()}
        ranks: dict[str, list[int]] = defaultdict(list)
        for rank, worker in workers.items():
            ranks[worker.metadata.node_id].append(rank)
        watcher = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=_here())(PreemptionWatcher)
        self._watcher = watcher.remote(
            node_to_ranks=dict(ranks),
            poll_interval_s=self._poll_interval_s,
            worker_actors_by_rank={rank: worker.actor for rank, worker in workers.items()},
        )


class _Controller(TrainController):
    worker_group_cls = _InItsPlace

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        callbacks = self._worker_group_callbacks_to_propagate
        callbacks[:] = [_WatchedFromHere() if type(one) is PreemptionCallback else one for one in callbacks]


# Each is a process more for every lane, and seconds more at its end: for Ray Data, which lanes do not use; and for the
# place of a killed controller, which here is the lane's: that one asks the dashboard, and stays where there is none.
UNUSED = DatasetsCallback, PlacementGroupCleanerCallback


class LaneTrainer(TorchTrainer):
    """As TorchTrainer, without processes that lanes have no use for.

    Args:
        place: of one bundle for each worker, where all its worker groups run; ready, or Ray Train waits for it
            RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S.
        options: TorchTrainer's.
    """

    def __init__(self, *arguments, place: PlacementGroup, **options):
        super().__init__(*arguments, **options)
        self._place = place

    def _create_default_callbacks(self):
        return [one for one in super()._create_default_callbacks() if not isinstance(one, UNUSED)]

    def _initialize_and_run_controller(self, **controller_init_kwargs):
        variables = {**get_env_vars_to_propagate(), PLACE: self._place.id.hex()}
        actor = ray.remote(num_cpus=0, scheduling_strategy=_here(), runtime_env={"env_vars": variables})(_Controller)
        controller = actor.remote(**controller_init_kwargs)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


def _here() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(get_runtime_context().get_node_id(), soft=False)
