"""Where trials are compared and stopped, as plain numbers; `search.schedulers` decides by them. Imports no ray."""

import itertools

import numpy as np

from search.objective import parse_objectives
from search.settings import Settings

GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, are spread more evenly than random numbers
WITH_RUNGS = ("asha", "hyperband")


def rungs(settings: Settings) -> list[int]:
    """The epochs at which trials are compared, the last one left out; of hyperband those of its first bracket.

    Rung k is at `grace_epochs * reduction_factor ** k` (successive halving, Li et al., arXiv 1810.05934). The other
    brackets' rungs are the later ones of the first bracket's.
    """
    if settings.scheduler not in WITH_RUNGS:
        return []
    epochs = (settings.grace_epochs * settings.reduction_factor**power for power in itertools.count())
    return list(itertools.takewhile(lambda epoch: epoch < settings.epochs, epochs))


def stops(settings: Settings) -> bool:
    """Whether the scheduler can stop a trial at all: none is stopped in its last epoch, which is over by then."""
    return settings.scheduler != "none" and settings.grace_epochs < settings.epochs


def brackets(settings: Settings) -> int:
    """How many brackets there are: ASHA's one; of hyperband those asked for that have a rung before the end."""
    return 1 if settings.scheduler != "hyperband" else max(1, min(settings.brackets, len(rungs(settings))))


def bracket_of(settings: Settings, trial_id: str) -> int:
    """A trial's bracket, the same in every session; most trials are in the first, which stops earliest.

    The shares are Ray's, exp(rungs of the bracket) normalized. Ray draws the bracket; here the trials' numbers are
    spread over the shares by the multiples of the golden ratio, so that a few trials are shared out fairly too.
    """
    count = brackets(settings)
    if count == 1:
        return 0
    start = np.random.default_rng(settings.seed).random()
    place = (start + int(trial_id) * GOLDEN) % 1.0
    return min(count - 1, int(np.searchsorted(np.cumsum(bracket_shares(settings)), place, side="right")))


def bracket_shares(settings: Settings) -> list[float]:
    """Each bracket's share of the trials."""
    shares = np.exp(-np.arange(brackets(settings)))
    return list(shares / shares.sum())


def restarts(settings: Settings) -> list[int]:
    """The epochs after which the learning-rate schedule starts anew: none, or with stopping_schedule=rung the rungs.

    A trial that is compared at a rung has then come to the end of a whole schedule, as has the one that it is compared
    with. All trials and baselines have the same schedule: hyperband's trials that skip the first rung restart there
    too, so that brackets differ in when they stop and in nothing else.
    """
    return rungs(settings) if settings.stopping_schedule == "rung" else []


def scheduler_notes(settings: Settings) -> list[str]:
    """What the scheduler does otherwise than the settings may suggest."""
    notes = []
    if stops(settings) and len(settings.objectives) > 1:
        first, *others = (one.metric for one in parse_objectives(settings.objectives, settings.metrics))
        notes.append(
            f"{settings.scheduler} stops trials by {first} alone: what is best in {' or '.join(others)} may be stopped "
            "and be missing from the Pareto front (--set scheduler=none trains all in full)"
        )
    if not stops(settings) and settings.scheduler != "none" and not settings.smoke:
        notes.append(
            f"{settings.scheduler} stops no trial: grace_epochs {settings.grace_epochs} leaves none of the "
            f"{settings.epochs} epochs to stop one before"
            + ("; nor does the learning rate start anew" if settings.stopping_schedule == "rung" else "")
            + " (--set grace_epochs=N, fewer than epochs)"
        )
    if settings.sampler in ("grid", "brute") and stops(settings):
        notes.append(
            f"sampler {settings.sampler} tries every point, but {settings.scheduler} may stop points before their last "
            "epoch (--set scheduler=none trains all in full)"
        )
    count = brackets(settings)
    if settings.scheduler == "hyperband" and count < settings.brackets and stops(settings):
        notes.append(
            f"hyperband has {count} bracket{'s' * (count > 1)}, not {settings.brackets}: a bracket needs a rung of its "
            f"own, and before epoch {settings.epochs} they are at {', '.join(map(str, rungs(settings))) or 'none'} "
            "(grace_epochs, then times reduction_factor)"
        )
    if count > 1:
        first = zip(bracket_shares(settings), rungs(settings), strict=False)
        notes.append(
            "hyperband compares trials first after epoch "
            + ", ".join(f"{epoch} ({share:.0%} of them)" for share, epoch in first)
        )
    if restarted := restarts(settings):
        notes.append(f"the learning rate starts anew after epoch {', '.join(map(str, restarted))}, baselines' too")
    return notes
