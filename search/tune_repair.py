"""A repair of Ray Tune, which is pinned: Ray's memory monitor may end a trial's proxy, and Tune then ends the study."""

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

_task_failed = RayActorManager._actor_task_failed


def take_want_of_memory_as_a_death() -> None:
    """From now on Tune takes it as any death of a trial's process, after which the trial has another one.

    Ray tells such a death by an error of its own, which is no `RayActorError`; Tune knows no other.
    """
    RayActorManager._actor_task_failed = _failed


def _failed(manager, tracked_actor_task, exception: Exception) -> None:
    if isinstance(exception, OutOfMemoryError):
        exception = RayActorError(error_msg=str(exception))
    _task_failed(manager, tracked_actor_task, exception)
