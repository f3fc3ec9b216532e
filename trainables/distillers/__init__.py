"""The ways to learn from a teacher: one file each, entered in `DISTILLERS`; importing this loads no torch.

A trial's `distiller` is one name, or several joined by `+` whose terms are added: `ofa+rsd`. A new one is a file here
with a `Distiller` in it and a line below; `trainables.distillers.conformance` says what it must hold.
"""

import difflib
from typing import Any

from trainables.distillers import cc, crd, dist, dkd, fitnet, kd, none, ofa, rkd, rsd  # noqa: F401 - they register
from trainables.distillers.base import COMMON, DISTILLERS, Distiller

__all__ = [
    "COMMON",
    "DISTILLERS",
    "Distiller",
    "defaults",
    "distillers_of",
    "hyperparameters",
    "suggest",
    "taps_stages",
]


def distillers_of(name: str) -> list[Distiller]:
    """The distillers that `distiller=NAME` names, in their order.

    Raises:
        ValueError: an unknown name (near ones are told), a repetition, or a combination that makes no sense.
    """
    names = name.split("+")
    for part in names:
        if part not in DISTILLERS:
            near = difflib.get_close_matches(part, DISTILLERS, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(DISTILLERS)}"
            raise ValueError(f"there is no distiller '{part}'; {hint} (several are joined by +)")
    chosen = [DISTILLERS[part] for part in names]
    if len(set(names)) < len(names):
        raise ValueError(f"'{name}' names a distiller twice")
    if len(names) > 1 and "none" in names:
        raise ValueError(f"'{name}': none is the student alone and goes with no other")
    on_logits = [distiller.name for distiller in chosen if distiller.on_logits]
    if len(on_logits) > 1:
        raise ValueError(f"'{name}': {' and '.join(on_logits)} all compare the final logits; give one of them")
    return chosen


def hyperparameters(name: str) -> set[str]:
    """The fields that trials with this distiller read, besides `stages`, `projector` and `gt_loss_weight`."""
    return set().union(*(distiller.hyperparameters() for distiller in distillers_of(name)))


def taps_stages(name: str) -> bool:
    """Whether trials with this distiller look at the student's stages, so that `stages` matters to them."""
    return any(distiller.stage_terms for distiller in distillers_of(name))


def defaults(name: str) -> dict[str, Any]:
    """The default of each of a distiller's own fields."""
    fields = (distiller.Fields.model_fields for distiller in distillers_of(name))
    return {field: info.default for own in fields for field, info in own.items()}


def suggest(trial, name: str) -> dict[str, Any]:
    """Draws a distiller's hyperparameters from their declared ranges, for a space's search function.

    Each is suggested as `FIELD@DISTILLER`, so that a search over distillers keeps what it learns of each apart.

    Args:
        trial: Optuna's.
        name: as in `distiller=NAME`.

    Returns:
        Fields of `TrialConfig`, `distiller` among them.
    """
    fields: dict[str, Any] = {"distiller": name}
    for distiller in distillers_of(name):
        for field, bounds in distiller.ranges.items():
            if field not in fields:
                fields[field] = bounds.suggest(trial, f"{field}@{name}")
    return fields
