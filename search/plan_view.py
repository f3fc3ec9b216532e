"""What --dry-run prints."""

from typing import Any

from search import results
from search.estimate import expected_end, not_estimated, warnings
from search.paths import storage_folder
from search.preflight import Plan
from search.stored import room_warning, store_url
from search.terminal import span

SAMPLES_SHOWN = 5


def print_plan(console, plan: Plan, cost: dict[str, Any]) -> None:
    """What a dry run shows: both models, the stages, sampled configurations and the estimate.

    Args:
        console: where.
        plan: the study's.
        cost: as `search.rehearsal.estimate` gives it; of a simulated study, which has no models, as
            `search.estimate.project` gives it without a trial's time.
    """
    settings = plan.settings
    student = branches = ""
    if not settings.simulate:
        student, branches = f", {_millions(cost['cost/student_params'])} parameters", _branches(cost)
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
    console.print()
    if not plan.settings.simulate:
        _print_times(console, plan, cost)
    for word, text in _budgets(plan, cost):
        console.print(f"{word:<10} {text}")
    if plan.settings.gpus_per_trial and not plan.settings.simulate:
        import torch

        if not torch.cuda.is_available():
            console.print("there is no GPU here: these are the times of this machine's CPU")


def _print_times(console, plan: Plan, cost: dict[str, Any]) -> None:
    console.print(
        f"a step takes {cost['step_s']:.3g} s here ({cost['distiller']}, all stages, batch {plan.base.batch_size}), "
        f"{cost['steps_per_epoch']} steps an epoch: a full trial {span(cost['trial_s'])}"
    )
    console.print(
        f"the study on {cost['lanes']} lane(s): {span(cost['study_min_s'])} where the scheduler stops as it may, "
        f"at most {span(cost['study_s'])}"
        + (f" (its packs of {plan.settings.pack} counted as if trained in turn)" if plan.settings.pack > 1 else "")
        + (f"; before it the teacher's fitting, {span(cost['teacher_s'])}" if cost["teacher_s"] else "")
    )
    if cost["store_mb"]:
        share = cost["store_s"] / (cost["lanes"] * cost["study_s"])
        console.print(
            f"the teacher's answers are computed once, {share:.0%} of it, and kept: at most {cost['store_mb']:,.3g} MB "
            f"(teacher_store={plan.settings.teacher_store})"
        )
        url = store_url(plan.settings, storage_folder(plan.settings.storage))
        if warning := room_warning(url, cost["store_mb"]):
            console.print(f"{'warning':<10} {warning}")


def _budgets(plan: Plan, cost: dict[str, Any]) -> list[tuple[str, str]]:
    """What all is needed of what may be limited, what will end the study, and where its budgets contradict."""
    settings = plan.settings

    def least_to_most(name: str, form: str) -> str:
        least, most = (format(cost[key], form) for key in (f"{name}_min", name))
        return least if least == most else f"{least} to {most}"

    parts = [f"{least_to_most('epochs', 'd')} epochs"]
    if settings.gpus_per_trial and not settings.simulate:
        parts.append(f"{least_to_most('gpu_hours', '.3g')} GPU-hours")
        if settings.price_per_gpu_hour:
            parts.append(f"{least_to_most('money', '.2f')} for them at {settings.price_per_gpu_hour:g} each")
    shares = [f"the final is {cost['final_share']:.0%} of a study without stops"] if plan.final_count else []
    shares += [f"the baselines' searches {cost['tuned_share']:.0%}"] if settings.tune_baselines else []
    unknown = []
    if settings.simulate:
        fields = not_estimated(plan, cost)
        act = f", and when {' or '.join(fields)} will act" if fields else ""
        unknown = [("not known", f"how long it takes, since nothing is trained{act}")]
    return [
        ("in all", "; ".join([", ".join(parts), *shares])),
        *unknown,
        ("ended by", expected_end(plan, cost)),
        *(("warning", text) for text in warnings(plan, cost)),
    ]


def _millions(count: float) -> str:
    return f"{count / 1e6:.2f} M"


def _pair(plan: Plan) -> str:
    others = [name for name in plan.pairs if name != plan.settings.pair]
    return plan.settings.pair + (f" (--set pair=... has {', '.join(others)} too)" if others else "")
