"""What the targets share that run our own losses and data inside another trainer: the configuration goes whole."""

from pathlib import Path
from typing import Any

from search.exporters.base import Export, Source, decisive, start_weights

INSTALL = "pip install PATH/TO/THIS/REPOSITORY"  # no index has it
TEACHER = "teacher.safetensors"


def whole(source: Source, export: Export) -> dict[str, Any]:
    """The configuration's fields for an adapter, and everything that decides the student accounted for as exact.

    Files of the trial are named by their copies, folders by their absolute paths.
    """
    config = source.config
    if config.distiller != "none":
        export.copies[TEACHER] = source.teacher
    changed = {
        name: str(Path(getattr(config, name)).resolve()) for name in ("data", "data_dir") if _is_folder(config, name)
    }
    if start := start_weights(source, export):
        changed["student_weights"] = start
    if config.teacher_weights:  # the study's own copy is what goes with it
        changed |= {"teacher_weights": None, "teacher_source": "fit"}
    rest = decisive(config) - export.exact.keys() - export.approximated.keys() - export.dropped.keys()
    export.exact |= dict.fromkeys(rest, "`config`, read by our adapter")
    return config.model_dump() | changed


def _is_folder(config, name: str) -> bool:
    value = getattr(config, name)
    return value is not None and Path(value).is_dir()


def teacher_file(source: Source) -> str | None:
    """The teacher's file beside the target's."""
    return TEACHER if source.config.distiller != "none" else None
