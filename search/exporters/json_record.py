"""The canonical record, for programs of one's own, and to begin another study with."""

import json
from pathlib import Path

from search.exporters.base import Export, Exporter, Source, decisive, register, to_json

SCHEMA = Path(__file__).with_name("record.schema.json")


@register
class JSONRecord(Exporter):
    """`best.json`, with every field of the configuration, and the schema that describes it."""

    name = "json"
    title = "the canonical record, with a JSON schema"

    def export(self, source: Source) -> Export:
        exact = {name: f"`config.{name}`" for name in decisive(source.config)}
        exact |= {name: "`config`, field by field" for name in ("images", "teacher", "student") if name in exact}
        return Export(
            files={"best.json": to_json(record_of(source)), SCHEMA.name: SCHEMA.read_text()},
            command=["python", "search/run.py", "--space", "SPACE", "--warm-start", "best.json"],
            needs="",
            exact=exact,
            copies={"student.safetensors": source.weights},
            notes=["The command tries this configuration first in another study."],
        )


def record_of(source: Source) -> dict:
    """The canonical record as JSON has it."""
    return json.loads(json.dumps(source.record, default=str))
