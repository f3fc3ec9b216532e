"""What a study will cost by the time that one trial takes, and which of its budgets will end it.

A simulated study's trials take next to no time, and its budgets of time count what passes, not what its curves say
that training took: of such a study only epochs and trials can be told.
"""

from dataclasses import dataclass
from typing import Any

from search.budgets import CUTTING
from search.preflight import Plan
from search.rungs import bracket_shares
from search.terminal import span


@dataclass(frozen=True)
class _Limit:
    """A hard budget in a unit of its own: what is given, what is needed in any case, and what a full trial takes."""

    field: str
    limit: float
    fixed: float
    trial: float
    show: Any  # a figure in words

    def trials(self, share: float) -> int:
        """How many trials it allows, if a trial trains that share of its epochs."""
        return max(0, int((self.limit - self.fixed) / (self.trial * share) + 1e-9))


def project(plan: Plan, trial_s: float | None, teacher_s: float = 0.0, store_s: float = 0.0) -> dict[str, Any]:
    """The study's cost, all in full length, and with `_min` where the scheduler stops as it may.

    Args:
        trial_s: seconds of a trial of full length; None of a simulated study, whose epochs alone can be told.
        teacher_s: of the teacher's fitting.
        store_s: of the teacher's answers, which the first trials compute for all.

    Returns:
        `study_s` and `study_min_s` (seconds over `lanes`, the teacher's fitting not in them, its answers in both),
        `epochs` and `epochs_min` of all runs together, `gpu_hours` and `gpu_hours_min` (the teacher's with them),
        `money` and `money_min` (None without a price), and the shares of all epochs (full length) that the final and
        the baselines' searches take, `final_share` and `tuned_share`. Without a trial's seconds what is made of them is
        left out.
    """
    settings, lanes = plan.settings, plan.settings.lanes  # packed trials are counted one after another
    fixed, price = _fixed_runs(plan), settings.price_per_gpu_hour
    figures: dict[str, Any] = {"lanes": lanes, "trial_s": trial_s, "teacher_s": teacher_s, "store_s": store_s}
    for suffix, share in (("", 1.0), ("_min", scheduler_share(settings))):
        runs = plan.trials * share + fixed
        figures["epochs" + suffix] = round(runs * settings.epochs)
        if trial_s is None:
            continue
        hours = (runs * trial_s + teacher_s + store_s) * settings.gpus_per_lane / 3600
        figures["study" + suffix + "_s"] = (trial_s * runs + store_s) / lanes
        figures["gpu_hours" + suffix] = hours
        figures["money" + suffix] = price and hours * price
    runs = plan.trials + fixed
    figures["final_share"] = plan.final_count / runs
    figures["tuned_share"] = len(plan.baselines) * settings.tune_baselines / runs
    return figures


def scheduler_share(settings) -> float:
    """The share of all epochs that is trained where the scheduler stops as it may.

    ASHA keeps one in `reduction_factor` at each rung; Hyperband is its mean over the trials' brackets, whose first
    rungs are later by that factor each; below the median is every second trial after the grace.
    """
    grace, epochs = min(settings.grace_epochs, settings.epochs), settings.epochs
    if settings.scheduler == "none":
        return 1.0
    if settings.scheduler == "median":
        return (grace + (epochs - grace) / 2) / epochs
    trained = (
        share * _asha_share(grace * settings.reduction_factor**bracket, settings)
        for bracket, share in enumerate(bracket_shares(settings))
    )
    return float(sum(trained))


def warnings(plan: Plan, figures: dict[str, Any]) -> list[str]:
    """Where the budgets contradict one another: one line for each that will or may end the study before its trials."""
    lines = []
    for limit, least, most in _limits(plan, figures):
        begins = f"{limit.field} ({limit.show(limit.limit)})"
        if limit.fixed >= limit.limit:
            lines.append(
                f"{begins} is less than what teacher, baselines and final take without any trial, about "
                f"{limit.show(limit.fixed)}; raise it, or lower finalists, seeds or tune_baselines"
            )
        elif most < plan.trials:
            need = _range(limit, plan, figures)
            after = f"{least} to {most}" if least < most else f"{most}"
            lines.append(
                f"{begins} ends the search after about {after} of {plan.trials} trials (the whole study: {need})"
            )
        elif least < plan.trials:
            lines.append(
                f"{begins} is enough for the {plan.trials} trials only where the scheduler stops as it may; were none "
                f"stopped, {least}"
            )
    return lines


def expected_end(plan: Plan, figures: dict[str, Any]) -> str:
    """Which budget will end the study, by the estimate."""
    settings = plan.settings
    sure = [(most, limit.field) for limit, _, most in _limits(plan, figures) if most < plan.trials]
    maybe = [(least, limit.field) for limit, least, most in _limits(plan, figures) if least < plan.trials <= most]
    if sure:
        words = min(sure)[1]
    elif maybe:
        words = f"trials ({plan.trials}), or {min(maybe)[1]} where the scheduler stops few"
    else:
        words = f"trials ({plan.trials})"
    soft = ["target"] if settings.target is not None else []
    soft += ["patience"] if settings.patience and settings.patience < settings.trials else []
    soft += not_estimated(plan, figures)
    return words + (f", unless {' or '.join(soft)} comes first" if soft else "")


def not_estimated(plan: Plan, figures: dict[str, Any]) -> list[str]:
    """The budgets that are given and of which nothing can be told: those of time, where nothing is trained."""
    return [name for name in CUTTING if getattr(plan.settings, name)] if figures["trial_s"] is None else []


def _limits(plan: Plan, figures: dict[str, Any]) -> list[tuple[_Limit, int, int]]:
    """The study's hard budgets, and how many trials each allows at least and at most."""
    settings, fixed, epochs = plan.settings, _fixed_runs(plan), plan.settings.epochs
    found = [_Limit("total_epochs", settings.total_epochs, fixed * epochs, epochs, lambda count: f"{count:.0f} epochs")]
    if (trial_s := figures["trial_s"]) is not None:
        teacher_s, store_s, lanes = figures["teacher_s"], figures["store_s"], figures["lanes"]
        hours, price = settings.gpus_per_lane / 3600, settings.price_per_gpu_hour or 0.0
        fixed_hours, trial_hours = (fixed * trial_s + teacher_s + store_s) * hours, trial_s * hours
        found[:0] = [
            _Limit(
                "time_budget",
                settings.time_budget,
                teacher_s + (fixed * trial_s + store_s) / lanes,
                trial_s / lanes,
                span,
            ),
            _Limit("gpu_hours", settings.gpu_hours, fixed_hours, trial_hours, lambda hours: f"{hours:.3g} GPU-hours"),
            _Limit("money", settings.money, fixed_hours * price, trial_hours * price, lambda money: f"{money:.2f}"),
        ]
    share = scheduler_share(settings)
    return [(one, one.trials(1.0), one.trials(share)) for one in found if one.limit]


def _range(limit: _Limit, plan: Plan, figures: dict[str, Any]) -> str:
    least, most = (
        limit.show(limit.fixed + limit.trial * plan.trials * share) for share in (scheduler_share(plan.settings), 1.0)
    )
    return least if least == most else f"{least} to {most}"


def _fixed_runs(plan: Plan) -> int:
    """The runs of full length that no scheduler stops: baselines, their searches, the final."""
    return len(plan.baselines) * (1 + plan.settings.tune_baselines) + plan.final_count


def _asha_share(grace: int, settings) -> float:
    """The share of all epochs that ASHA trains with its first rung at `grace` epochs."""
    trained, alive, at, rung = 0.0, 1.0, 0, grace
    while at < settings.epochs:
        until = min(rung, settings.epochs)
        trained += alive * (until - at)
        at, rung, alive = until, rung * settings.reduction_factor, alive / settings.reduction_factor
    return trained / settings.epochs
