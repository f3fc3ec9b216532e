"""The canonical record, for programs of one's own, and to begin another study with."""

import math
from pathlib import Path
from typing import Any

from search.exporters.base import Export, Exporter, Source, decisive, register, to_json

SCHEMA = Path(__file__).with_name("record.schema.json")


@register
class JSONRecord(Exporter):
    """`best.json`, with every field of the configuration, and the schema that describes it."""

    name = "json"
    title = "the canonical record, with a JSON schema"

    def export(self, source: Source) -> Export:
        searched = source.record["searched"]  # of a baseline there is nothing to try
        exact = {name: f"`config.{name}`" for name in decisive(source.config)}
        exact |= {name: "`config`, field by field" for name in ("images", "teacher", "student") if name in exact}
        return Export(
            files={"best.json": to_json(record_of(source)), SCHEMA.name: SCHEMA.read_text()},
            command=["python", "search/run.py", "--space", "SPACE", "--warm-start", "best.json"] if searched else [],
            needs="",
            exact=exact,
            copies={"student.safetensors": source.weights},
            notes=["The command tries this configuration first in another study."] if searched else [],
        )


def record_of(source: Source) -> dict[str, Any]:
    """The canonical record as JSON has it: what is no finite number is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(name): plain(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return plain(source.record)
