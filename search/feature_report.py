"""What came of comparing two models' features: a picture, the numbers, a few lines on the terminal."""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.heatmap import Panel, draw_heatmaps
from search.results import print_table

if TYPE_CHECKING:
    from torch import Tensor

    from trainables.similarity import Comparison

PICTURE, NUMBERS = "cka.png", "cka.json"
PRETRAINED, SCRATCH = "pretrained", "scratch"
ROLES = ("teacher", "student")
MEANING = {  # of the metrics, in words
    "cka/same_depth": "at equal depth",
    "cka/closest": "each student layer with its closest teacher layer",
    "cka/mean": "over all pairs",
    "cka/logits": "logits",
}


def metrics(result: "Comparison") -> dict[str, float | None]:
    """The comparison in a few numbers, by the names that MLflow shows; None or NaN where there is none."""
    from trainables.similarity import summary

    own = {"agreement": result.agreement, "teacher/top1": result.teacher_top1, "student/top1": result.student_top1}
    return own | summary(result.cka)


def write_report(result: "Comparison", facts: dict[str, Any], out: Path, *, with_itself: bool) -> None:
    """Writes the picture and the numbers, both whole or neither.

    Args:
        facts: `settings`, the fields of the comparison by name; `data`, in words; `data_fingerprint`; `study` or None.
        out: the folder, made where there is none.
        with_itself: whether the picture shows each model beside itself too; the numbers always do.
    """
    content = {
        **facts,
        "images": result.images,
        "metrics": {key: _number(value) for key, value in metrics(result).items()},
        "teacher_layers": result.teacher_layers,
        "student_layers": result.student_layers,
        "cka": {
            "teacher_student": _rows(result.cka),
            "teacher_teacher": _rows(result.teacher_cka),
            "student_student": _rows(result.student_cka),
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    partial = {name: out / f"{name}.partial" for name in (PICTURE, NUMBERS)}
    try:
        partial[NUMBERS].write_text(json.dumps(content, indent=1) + "\n")
        _draw(result, facts["settings"], with_itself, partial[PICTURE])
        for name, path in partial.items():
            os.replace(path, out / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def print_report(console, result: "Comparison", facts: dict[str, Any]) -> None:
    """Prints both models, their agreement, and how alike their layers are."""
    import pandas

    settings, numbers = facts["settings"], metrics(result)
    rows = [
        {
            "": role,
            "model": settings[role],
            "layers": len(getattr(result, f"{role}_layers")),
            "top1": numbers[f"{role}/top1"],
            "weights": _weights(settings[f"{role}_weights"]),
        }
        for role in ROLES
    ]
    console.print()
    print_table(console, pandas.DataFrame(rows))
    agreement = "none: the models have different classes"
    if result.agreement is not None:
        agreement = f"{result.agreement:.2f} % of {result.images} images get the same class from both"
    console.print(f"\nagreement:  {agreement}")
    for number, (key, words) in enumerate(MEANING.items()):
        value = "    -" if math.isnan(numbers[key]) else f"{numbers[key]:.3f}"
        console.print(f"{'' if number else 'CKA:':<12}{value}  {words}")
    for role in ROLES:
        own, names = getattr(result, f"{role}_cka"), getattr(result, f"{role}_layers")
        if without := [name for name, value in zip(names, own.diagonal(), strict=True) if value.isnan()]:
            listed = ", ".join(without)
            console.print(f"no CKA:     {role} {listed}: equal for all images, or not finite", markup=False)


def _draw(result: "Comparison", settings: dict[str, Any], with_itself: bool, path: Path) -> None:
    sides = {role: (f"{role}: {settings[role]}", getattr(result, f"{role}_layers")) for role in ROLES}
    panels = [Panel(result.cka.numpy(), *sides["teacher"], *sides["student"])]
    if with_itself:
        panels = [
            Panel(result.teacher_cka.numpy(), *sides["teacher"], *sides["teacher"]),
            Panel(result.student_cka.numpy(), *sides["student"], *sides["student"]),
            *panels,
        ]
    title = [_caption(settings, role, getattr(result, f"{role}_top1")) for role in ROLES]
    facts = [f"{settings['data']}, {result.images} images of the holdout at {settings['img_size']} pixels"]
    if result.agreement is not None:
        facts.append(f"agreement {result.agreement:.1f} %")
    draw_heatmaps(panels, title, facts, "linear CKA (unbiased, over minibatches)", path)


def _caption(settings: dict[str, Any], role: str, top1: float | None) -> str:
    notes = [role]
    if settings[f"{role}_weights"] == SCRATCH:
        notes.append("random weights")
    elif top1 is not None:
        notes.append(f"top-1 {top1:.1f} %")
    return f"{settings[role]} ({', '.join(notes)})"


def _weights(weights: str) -> str:
    return {SCRATCH: "RANDOM (scratch)", PRETRAINED: "timm's pretrained"}.get(weights, weights)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _rows(matrix: "Tensor") -> list[list[float | None]]:
    """A matrix for JSON, which has no NaN."""
    return [[_number(value) for value in row] for row in matrix.tolist()]
