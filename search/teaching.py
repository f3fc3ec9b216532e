"""The teacher is made ready once, by the first lane that stands, and judged before anybody learns from it."""

from collections.abc import Callable

import ray

from search.lanes import follow
from search.preflight import Plan
from trainables.errors import InputError, StudyError

TEACHER = "teacher"  # the teacher's trial id at the broker


def ready_teacher(
    plan: Plan,
    places: dict,
    broker,
    lanes,
    view,
    interrupted: Callable[[], bool],
    reported: Callable[[], None],
) -> dict:
    """Has a lane make the teacher ready and judges it.

    Args:
        places: where it is fitted, and kept for all studies: a job's fields (`trainables.lane`).
        broker, lanes, view: the study's.
        interrupted: whether to give up.
        reported: called at each of its reports.

    Returns:
        Its figures, as `trainables.teacher_job.prepare_teacher`; {} where it was interrupted.

    Raises:
        StudyError: it could not be made ready.
        InputError: it does not clearly beat chance, or does not fit the data.
    """
    job = {
        "kind": "teacher",
        "config": plan.base.model_dump(),
        "recipe": plan.teacher_recipe,
        **places,
    }
    ray.get(broker.submit.remote(TEACHER, job, judged=False))
    epochs = plan.teacher_recipe["epochs"]

    def on_report(metrics: dict) -> None:
        reported()
        view.phase(f"fitting the teacher: epoch {metrics['epoch']}/{epochs}, holdout {metrics['val/top1']:.2f}%")

    try:
        teacher = follow(broker, lanes, TEACHER, on_report, interrupted)
    except StudyError as error:
        raise StudyError(f"the teacher could not be made ready: {error}") from error
    if teacher is None:
        return {}
    if not plan.curves:
        view.note(_judged(plan, teacher))
    return teacher


def _judged(plan: Plan, teacher: dict) -> str:
    """How good it is, in words."""
    words = f"teacher {plan.settings.teacher}: {teacher['top1']:.2f}% on the holdout of {teacher['images']} images"
    if _beats_chance(teacher):
        return words
    if plan.settings.smoke:
        return f"{words} (a smoke run does not judge it)"
    raise InputError(
        f"teacher: {words} do not clearly beat chance ({100 / teacher['classes']:.1f}%); "
        "check teacher_weights and the order of classes, or fit it: --set teacher_source=fit"
    )


def _beats_chance(teacher: dict) -> bool:
    from trainables.teacher import clearly_beats_chance

    return clearly_beats_chance(teacher["top1"], teacher["images"], teacher["classes"])
