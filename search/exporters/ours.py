"""What the targets share that run our own losses and data inside another trainer: the configuration goes whole."""

from typing import Any

from search.exporters.base import Export, Source, decisive

INSTALL = "pip install ofakd-search"
TEACHER = "teacher.safetensors"


def whole(source: Source, export: Export) -> dict[str, Any]:
    """The configuration's fields for an adapter, and everything that decides the student accounted for as exact."""
    config = source.config
    if config.distiller != "none":
        export.copies[TEACHER] = source.teacher
    rest = decisive(config) - export.exact.keys() - export.approximated.keys() - export.dropped.keys()
    export.exact |= dict.fromkeys(rest, "`config`, read by our adapter")
    return config.model_dump()


def teacher_file(source: Source) -> str | None:
    """The teacher's file beside the target's."""
    return TEACHER if source.config.distiller != "none" else None
