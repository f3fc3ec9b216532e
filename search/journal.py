"""A study that goes on with other ranges: Optuna's journal written anew, each earlier trial with what still fits.

Optuna's samplers either go on with the ranges that they saw first or leave a parameter out whose range changed, and
Optuna refuses other choices. The ledger keeps every trial's parameters, so that a range that is widened again brings
back what a narrower one had left out.
"""

import copy
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search.ledger import Ledger
from search.optuna_study import is_prior, load_study, write_journal
from search.replay import NOWHERE, as_in, replay, words
from search.samplers import COMMON_ONLY, PARTIAL
from search.space import SAMPLES, SearchSpace
from search.storage import JOURNAL
from search.tracking.facts import as_text
from trainables.config import Distillation, TrialConfig
from trainables.errors import InputError

SEARCHED = "searched"  # user attribute of another study's trial: all its parameters
FIXED = "fixed_params"  # system attribute of Optuna's: what an enqueued trial shall have


@dataclass(frozen=True)
class _Earlier:
    """An earlier trial, all parameters that it ever had, and the same trial as it is in the space of now."""

    stored: FrozenTrial
    params: dict[str, Any]
    now: FrozenTrial

    @property
    def changed(self) -> bool:
        return any(
            getattr(self.stored, part) != getattr(self.now, part)
            for part in ("params", "distributions", "user_attrs", "system_attrs")
        )


def carry_over(folder: Path, space: SearchSpace, seed: int, sampler: str, *, write: bool = True) -> list[str]:
    """Fits a study's journal to the space as it is now; the study must not be open.

    Each trial keeps its number, state, values and attributes, and of its parameters those that fit. The old journal
    stays as `optuna-1.log`, `optuna-2.log` and so on. Whenever this is cut off, `optuna.log` is the old or the new one,
    whole.

    Args:
        folder: the study's.
        space: as it is now; its overrides are part of it.
        seed: of the draws that show what it suggests.
        sampler: by our name; `brute` has to know which trials are whole points of the space.
        write: False only says what would be done.

    Returns:
        What changed, a line each for people; empty where nothing did.

    Raises:
        InputError: the earlier trials have no parameter in common with the space.
    """
    journal = folder / JOURNAL
    if not journal.exists():
        return []
    study = load_study(journal)
    known = space.distributions(SAMPLES, seed)
    trials = _fitted(study.get_trials(deepcopy=False), _recorded(folder), space, known, sampler == "brute")
    had = [trial for trial in trials if trial.params and trial.stored.state != TrialState.WAITING]
    if had and not any(trial.now.params for trial in had):
        names = ", ".join(sorted(set().union(*(trial.params for trial in had))))
        raise InputError(
            f"search: none of the parameters of the {len(had)} earlier trials ({names}) fits this space; start a new "
            "study, or give the ranges that it had"
        )
    notes = _notes([trial for trial in had if not is_prior(trial.stored)], known, space, seed, sampler)
    if write and any(trial.changed for trial in trials):
        attributes = study._storage.get_study_system_attrs(study._study_id)

        def fill(fresh) -> None:
            for name, value in attributes.items():
                fresh._storage.set_study_system_attr(fresh._study_id, name, value)
            for name, value in study.user_attrs.items():
                fresh.set_user_attr(name, value)
            fresh.add_trials(trial.now for trial in trials)

        _keep(journal)
        write_journal(journal, study.study_name, study.directions, fill)
    return notes


def changed_fields(folder: Path, drawn: list[TrialConfig]) -> list[str]:
    """The fields of the losses that nobody searches and that trials from now on have otherwise, a line each.

    Args:
        folder: the study's.
        drawn: configurations as the space gives them now.
    """
    earlier = Ledger(folder / "trials").of_role("trial")
    searched = set().union(*(record.params for record in earlier))
    notes = []
    for name in sorted(set(Distillation.model_fields) - searched):
        before = {as_text(record.config[name]) for record in earlier if name in record.config}
        now = {as_text(getattr(config, name)) for config in drawn}
        if len(before) == len(now) == 1 and before != now:
            notes.append(f"{name}: {now.pop()} from now on; the {_trials(len(earlier))} before had {before.pop()}")
    return notes


def _recorded(folder: Path) -> dict[int, dict[str, Any]]:
    """What the study's own trials have searched, by Optuna's numbers."""
    return {record.number: record.params for record in Ledger(folder / "trials").of_role("trial")}


def _fitted(
    stored: list[FrozenTrial],
    recorded: dict[int, dict[str, Any]],
    space: SearchSpace,
    known: dict[str, BaseDistribution],
    points_only: bool,
) -> list[_Earlier]:
    """All trials as they are in the space of now; adds to the known distributions what they meet in rare branches."""
    all_params = []
    for trial in stored:
        waiting = trial.state == TrialState.WAITING
        params = trial.system_attrs.get(FIXED, {}) if waiting else trial.user_attrs.get(SEARCHED, trial.params)
        all_params.append(recorded.get(trial.number, params))
    branches = [_branch(space, params) for params in all_params]
    for branch in branches:
        for name, distribution in branch.items():
            known.setdefault(name, distribution)
    fitted = []
    for trial, params, branch in zip(stored, all_params, branches, strict=True):
        distributions = {**branch, **{name: known[name] for name in params if name in known and name not in branch}}
        kept = {name: as_in(one, params[name]) for name, one in distributions.items() if name in params}
        kept = {name: value for name, value in kept.items() if value is not NOWHERE}
        distributions = {name: distributions[name] for name in kept}
        now = _with(trial, kept, distributions)
        if now.state != TrialState.WAITING and (points_only or PARTIAL in trial.user_attrs):
            now.user_attrs = {name: value for name, value in now.user_attrs.items() if name != PARTIAL}
            cut_off = PARTIAL in trial.user_attrs and trial.number not in recorded
            if cut_off or (points_only and branch.keys() != distributions.keys()):
                now.user_attrs[PARTIAL] = True
        fitted.append(_Earlier(trial, params, now))
    return fitted


def _branch(space: SearchSpace, params: dict[str, Any]) -> dict[str, BaseDistribution]:
    try:
        return replay(space, params)[1]
    except InputError:  # the trial failed for this very reason
        return {}


def _with(trial: FrozenTrial, params: dict[str, Any], distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    """A trial with other parameters, without what samplers had noted in the coordinates of the old ones."""
    made = copy.copy(trial)
    if trial.state == TrialState.WAITING:
        made.system_attrs = {**trial.system_attrs, FIXED: params} if FIXED in trial.system_attrs else trial.system_attrs
        return made
    if params == trial.params and distributions == trial.distributions:
        return made
    made.params, made.distributions = params, distributions
    made.system_attrs = {
        name: value for name, value in trial.system_attrs.items() if name == FIXED or name.startswith("NSGA")
    }
    return made


def _keep(journal: Path) -> None:
    """Gives the journal a second name that it keeps."""
    number = 1
    while (old := journal.with_name(f"{journal.stem}-{number}{journal.suffix}")).exists():
        number += 1
    try:
        os.link(journal, old)
    except OSError:  # a file system without links
        shutil.copyfile(journal, old)


def _notes(
    earlier: list[_Earlier], known: dict[str, BaseDistribution], space: SearchSpace, seed: int, sampler: str
) -> list[str]:
    before: dict[str, BaseDistribution] = {}
    for trial in earlier:
        before |= trial.stored.distributions
    having = Counter(name for trial in earlier for name in trial.params)
    keeping = Counter(name for trial in earlier for name in trial.now.params)
    notes = []
    for name, distribution in before.items():
        if name not in known:
            notes.append(f"search.{name}: searched no more; {_trials(having[name])} had it")
        elif known[name] != distribution:
            notes.append(
                f"search.{name}: {words(known[name])} instead of {words(distribution)}; {keeping[name]} of "
                f"{_trials(having[name])} keep it"
            )
    always = set(known) - set(space.conditional(SAMPLES, seed))
    fresh = sorted(always - set(having)) if earlier else []
    notes += [f"search.{name}: new, {words(known[name])}; no earlier trial has it" for name in fresh]
    complete = [trial.now for trial in earlier if trial.stored.state == TrialState.COMPLETE]
    lacking = sorted(name for name in always if any(name not in trial.params for trial in complete))
    if lacking and sampler in COMMON_ONLY:
        notes.append(
            f"sampler {sampler} models the parameters that all complete trials have, so not {', '.join(lacking)}; "
            "tpe does (--set sampler=tpe)"
        )
    return notes


def _trials(count: int) -> str:
    return f"{count} trial{'s' * (count != 1)}"
