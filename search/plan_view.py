"""What --dry-run prints."""

from typing import Any

from search import results
from search.preflight import Plan

SAMPLES_SHOWN = 5


def print_plan(console, plan: Plan, cost: dict[str, Any] | None) -> None:
    """What a dry run shows: both models, the stages, sampled configurations and the estimate.

    Args:
        console: where.
        plan: the study's.
        cost: as `search.rehearsal.estimate` gives it; None of a simulated study, which has no models.
    """
    settings = plan.settings
    student, branches = (
        (f", {_millions(cost['cost/student_params'])} parameters", _branches(cost)) if cost else ("", "")
    )
    lines = [
        ("study", f"{settings.name}: {plan.trials} trials of {settings.epochs} epochs, {settings.sampler} sampler, "
                  f"{settings.scheduler} scheduler; baselines {', '.join(plan.baselines)}"),
        *([("pair", _pair(plan))] if settings.pair else []),
        ("data", plan.data),
        ("teacher", f"{settings.teacher} ({settings.teacher_source})"),
        ("student", f"{settings.student}{student}, recipe of family '{plan.family}'"),
        ("stages", ", ".join(map(str, plan.available))),
        ("distiller", f"{', '.join(plan.distillers)}{branches}"),
        *(("note", note) for note in plan.notes),
    ]  # fmt: skip
    for word, text in lines:
        console.print(f"{word:<10} {text}")
    console.print(f"\n{SAMPLES_SHOWN} configurations from the space:")
    for params, _ in plan.space.samples(SAMPLES_SHOWN, settings.seed):
        console.print(f"  {results.in_words(params)}")
    if cost:
        _print_cost(console, plan, cost)
    console.print("nothing was trained or written")


def _branches(cost: dict[str, Any]) -> str:
    part = f"{_millions(cost['cost/branch_params'])} parameters"
    share = f"{cost['cost/branch_flops'] / cost['cost/student_flops']:.0%}"
    bank = f", and a memory bank of {cost['bank_mb']:.3g} MB a worker" if cost["bank_mb"] else ""
    return (
        f"; with all stages the branches of {cost['distiller']} add {part} and {share} of the student's FLOPs, "
        f"in training only{bank}"
    )


def _print_cost(console, plan: Plan, cost: dict[str, Any]) -> None:
    import torch

    console.print(
        f"\na step takes {cost['step_s']:.3g} s here ({cost['distiller']}, all stages, batch {plan.base.batch_size}), "
        f"{cost['steps_per_epoch']} steps an epoch: a full trial {_span(cost['trial_s'])}"
    )
    console.print(
        f"the study on {cost['lanes']} lane(s): {_span(cost['study_min_s'])} where the scheduler stops as it may, "
        f"at most {_span(cost['study_s'])}"
        + (f"; before it the teacher's fitting, {_span(cost['teacher_s'])}" if cost["teacher_s"] else "")
    )
    if plan.settings.gpus_per_trial and not torch.cuda.is_available():
        console.print("there is no GPU here: these are the times of this machine's CPU")


def _millions(count: float) -> str:
    return f"{count / 1e6:.2f} M"


def _pair(plan: Plan) -> str:
    others = [name for name in plan.pairs if name != plan.settings.pair]
    return plan.settings.pair + (f" (--set pair=... has {', '.join(others)} too)" if others else "")


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
