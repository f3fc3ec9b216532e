"""What is typed after --set: FIELD=VALUE, the value in YAML, lists with commas, parts of a dict with a dot."""

from typing import Any

import yaml

DICTS = ("search", "recipe", "teacher_recipe", "student_kwargs", "teacher_kwargs")
LISTS = ("stages", "baselines", "warm_start", "objectives", "metrics")  # where one value is a list of one
LISTED = (*LISTS, "eps", "taps", "crop_scale", "crop_ratio", "curriculum_range")


class Part(dict):
    """Entries given one by one (`student_kwargs.depth=3`): they are added to the field; a whole dict replaces it."""


def parse_sets(sets: list[str], problems: list[str]) -> dict[str, Any]:
    """The fields that --set gives, `DICT.KEY=VALUE` as a `Part`; adds to the problems what is no FIELD=VALUE."""
    given: dict[str, Any] = {}
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals or not key:
            problems.append(f"--set: '{item}' is not FIELD=VALUE")
            continue
        outer, dot, inner = key.partition(".")
        if dot and outer in DICTS:
            kind = type(given[outer]) if isinstance(given.get(outer), dict) else Part
            given[outer] = kind({**given.get(outer, {}), inner: parse_value(text)})
        else:
            given[key] = _listed(key, parse_value(text))
    return given


def parse_value(text: str) -> Any:
    """A value from the command line: YAML, but `5e-4` is a number too, and `no` is a word."""
    if text.lower() in ("yes", "no", "on", "off", "y", "n"):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _listed(key: str, value: Any) -> Any:
    if key not in LISTED:
        return value
    if key == "stages" and value == "none":  # as tables and the live view write it
        return []
    if isinstance(value, str) and "," in value:
        return [parse_value(part) for part in value.split(",")]
    return [value] if key in LISTS and not isinstance(value, list) else value
