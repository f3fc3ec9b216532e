"""Budgets that contradict one another or can never act, known from the settings alone."""

from search.objective import PERCENT, Objective

# From what a metric may be, where that is known.
RANGES = {**dict.fromkeys(PERCENT, (0.0, 100.0)), "val/loss": (0.0, float("inf"))}


def least_epochs(settings) -> int:
    """The epochs of the smallest study that its settings allow: a trial, baselines and their searches, the final."""
    baselines = len(settings.baselines)
    return (1 + baselines * (1 + settings.tune_baselines)) * settings.epochs + final_runs(settings) * settings.epochs


def final_runs(settings, trials: int | None = None, students: int = 1) -> int:
    """How many runs the final has at most.

    Args:
        trials: how many there are, where they are fewer than the settings ask for.
        students: how many the space searches; each among the finalists has baselines of its own.
    """
    finalists = min(settings.finalists, settings.trials if trials is None else trials)
    rivals = len(settings.baselines) * (2 if settings.tune_baselines else 1)  # as given, and the best of its search
    return (finalists + rivals * min(students, finalists)) * settings.seeds


def budget_problems(settings, objective: Objective) -> list[str]:
    """What is wrong with the budgets, one line each: the field and the fix."""
    problems = []
    if settings.money and not settings.price_per_gpu_hour:
        problems.append("money: without a price nothing is counted; add --set price_per_gpu_hour=PRICE")
    for field in ("gpu_hours", "money"):
        if getattr(settings, field) and not settings.gpus_per_trial:
            problems.append(
                f"{field}: trials hold no GPU (gpus_per_trial is 0), so it would never act; add --gpus-per-trial, "
                "or limit the study with --time-budget"
            )
    if settings.target is not None and objective.metric in RANGES:
        low, high = RANGES[objective.metric]
        if not low <= settings.target <= high:
            said = f"between {low:g} and {high:g}" if high < float("inf") else f"{low:g} or more"
            problems.append(f"target: {settings.target:g} cannot be reached, as {objective.metric} is {said}")
    if settings.total_epochs and settings.total_epochs < (least := least_epochs(settings)):
        final = f" and the final's {runs} runs" if (runs := final_runs(settings)) else ""
        problems.append(
            f"total_epochs: {settings.total_epochs} are fewer than one trial, the baselines{final} need, {least}; "
            "raise it, or lower epochs, finalists, seeds or tune_baselines"
        )
    return problems


def budget_notes(settings, objective: Objective) -> list[str]:
    """What of the budgets is allowed and yet may not be meant."""
    notes = []
    if settings.price_per_gpu_hour and not settings.gpus_per_trial:
        notes.append("price_per_gpu_hour: trials hold no GPU, so that nothing costs anything")
    elif settings.price_per_gpu_hour and not settings.money:
        notes.append("price_per_gpu_hour without money: what is spent is told, and limits nothing")
    if settings.patience and settings.patience >= settings.trials:
        notes.append(f"patience {settings.patience} never acts, as there are {settings.trials} trials in all")
    target = settings.target
    if target is not None and objective.metric in PERCENT and objective.maximize and 0 < target <= 1:
        notes.append(
            f"target {target:g}: {objective.metric} is in percent, so nearly every trial reaches it; "
            f"is {100 * target:g} meant?"
        )
    return notes
