"""The student, or the several that a space searches: each one's family, recipe and stages, found by building it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from search.recipes import family_recipe
from search.rungs import restarts
from search.settings import Settings, compose, cut_stages
from trainables.config import TrialConfig
from trainables.errors import InputError

CHOICE = ("student", "student_kwargs")  # the fields that a space returns where it searches the student


def student_of(config: dict[str, Any]) -> str:
    """A configuration's student as text, equal where the students are."""
    return json.dumps([config.get(name) for name in CHOICE], sort_keys=True)


@dataclass(frozen=True)
class StudentFacts:
    """What a study needs to know of one student."""

    family: str
    recipe: dict[str, Any]  # its family's, with what the settings change
    full_length: dict[str, int]  # epochs, warm-up and decay of the recipe where it is not shortened
    available: list[int]  # its stages


class Students:
    """Builds each student once.

    Args:
        settings: the study's; their student is the one where the space returns none.
        build: builds the student that settings name, raising InputError.
    """

    def __init__(self, settings: Settings, build: Callable[[Settings], Any]):
        self._settings, self._build = settings, build
        self._facts: dict[str, StudentFacts] = {}

    def of(self, fields: dict[str, Any]) -> StudentFacts:
        """The facts of the student that a trial has.

        Args:
            fields: what the space returned, or a trial's whole configuration.

        Raises:
            InputError: it cannot be built.
        """
        settings = self._settings.model_copy(update=self._choice(fields))
        key = f"{settings.student} {settings.student_kwargs}"
        if key not in self._facts:
            self._facts[key] = self._look_at(settings)
        return self._facts[key]

    def compose(self, settings: Settings, fields: dict[str, Any]) -> TrialConfig:
        """A trial's whole configuration from what the space returned.

        Raises:
            InputError: as `search.settings.compose` and `of`.
        """
        pinned = {name: getattr(settings, name) for name in CHOICE if name in settings.pinned}
        choice = self._choice({**fields, **pinned})
        facts = self.of(choice)
        stages = {} if "stages" in fields or not choice else {"stages": settings.stages}
        return compose(settings, facts.recipe, facts.available, {**stages, **fields, **choice})

    def swapped(self, config: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        """A whole configuration with another one's student, its family's recipe and its stages."""
        old, new = self.of(config), self.of(other)
        moved = {name: value for name, value in new.recipe.items() if config.get(name) == old.recipe.get(name)}
        return cut_stages({**config, **moved, **{name: other[name] for name in CHOICE}}, new.available)

    def _choice(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Student and arguments that a trial has in place of the settings'; arguments go with their own student."""
        settings = self._settings
        if not fields.keys() & set(CHOICE):
            return {}
        name = fields.get("student", settings.student)
        if name != settings.student and settings.student_source == "checkpoint":
            raise InputError(f"student_weights: they belong to {settings.student}, and the space searches {name} too")
        own = settings.student_kwargs if name == settings.student else {}
        return {"student": name, "student_kwargs": {**own, **fields.get("student_kwargs", {})}}

    def _look_at(self, settings: Settings) -> StudentFacts:
        from trainables.build import family
        from trainables.student import available_stages

        model = self._build(settings)
        kind = family(model) if settings.family == "auto" else settings.family
        recipe, full_length = family_recipe(settings.recipes, kind, settings.epochs, settings.full_epochs)
        recipe |= {"sched_restarts": restarts(settings)} if settings.stopping_schedule == "rung" else {}
        return StudentFacts(kind, recipe | settings.recipe, full_length, available_stages(model, settings.taps))
