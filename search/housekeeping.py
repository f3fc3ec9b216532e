"""Keeps a study within its disk budget, by removing what no trial needs any more."""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial

from search.final import best_record
from search.ledger import COMPLETE, RUNNING, Ledger
from search.paths import is_url
from search.periodic import Periodic
from trainables.remote import Found, Remote
from trainables.teacher_store.parts import ABOUT

LOOKS_EVERY_S = 60.0
IN_USE_S = 3600.0  # answers that were read or written so recently are in use; readers say so six times as often
CLOCKS_S = 60.0  # by how much the clock of a store and this machine's may differ
WEIGHTS = "student.safetensors"


class Housekeeping(Periodic):
    """Looks after the disk while the study runs.

    What it removes, in this order, until the budget holds: the weights of trials that are not among the best
    `finalists` (`search/export.py --trial` cannot export those any more); and the teacher's answers that other studies
    left, those first that were used longest ago. It never touches what a trial goes on from, answers that any trial
    has used since the session began or within an hour, baselines, finalists and results.

    Args:
        study, store: where the study and the teacher's answers are kept, folders or any URLs of fsspec's.
        ledger: the study's records.
        budget: bytes for both together.
        finalists: how many trials the final takes.
        note: told, in one line, where the budget does not hold.
    """

    def __init__(
        self, study: str, store: str, ledger: Ledger, budget: int, finalists: int, note: Callable[[str], None]
    ):
        super().__init__(LOOKS_EVERY_S)
        self._study, self._store = Remote(_url(study)), Remote(_url(store))
        self._ledger, self._budget, self._note = ledger, budget, note
        self._finalists = max(1, finalists)
        self._begun, self._told = time.time() - CLOCKS_S, False

    def _look(self) -> None:
        self.tidy()

    def _last(self) -> None:
        self.tidy()

    def tidy(self) -> None:
        """Removes what is not needed, where the budget does not hold."""
        files, answers = self._study.files(), self._answers()
        used = _total(files.values()) + sum(size for size, _ in answers.values())
        for size, remove in self._removable(files, answers):
            if used <= self._budget:
                break
            with contextlib.suppress(OSError):
                remove()
                used -= size
        if used > self._budget and not self._told:
            self._told = True
            self._note(
                f"disk_budget: {used / 1e9:.2f} GB are used and nothing more of it can go; raise it from "
                f"{self._budget / 1e9:.2f} GB, or take --set teacher_store=topk:16, views:4 or off"
            )

    def _removable(
        self, files: dict[str, Found], answers: dict[str, tuple[int, float]]
    ) -> Iterable[tuple[int, Callable[[], None]]]:
        """What may go, the least needed first: its size, and what removes it."""
        for trial_id in self._unneeded():
            name = f"{self._ledger.folder.name}/{trial_id}/{WEIGHTS}"
            if name in files:
                yield files[name].size, partial(self._study.remove, name)
        unused = min(self._begun, time.time() - IN_USE_S)
        for name, (size, used_last) in sorted(answers.items(), key=lambda one: one[1][1]):
            if used_last < unused:
                yield size, self._store.at(name).remove_all

    def _unneeded(self) -> list[str]:
        """The ended trials whose weights nobody needs, the worst first."""
        ended = [record for record in self._ledger.of_role("trial") if record.state != RUNNING]
        best = sorted(self._ledger.complete(), key=lambda record: record.scores, reverse=True)[: self._finalists]
        kept = {record.trial_id for record in [*best, *self._ledger.front()]}
        if winner := best_record(self._ledger):
            kept.add(winner.trial_id)
        others = [record for record in ended if record.trial_id not in kept]
        return [one.trial_id for one in sorted(others, key=lambda one: (one.state == COMPLETE, one.scores))]

    def _answers(self) -> dict[str, tuple[int, float]]:
        """By key, the bytes of its answers, and when a trial began to write or to read them, seconds since 1970."""
        keys: dict[str, dict[str, Found]] = defaultdict(dict)
        for path, found in self._store.files().items():
            key, _, name = path.partition("/")
            keys[key][name] = found
        return {
            key: (_total(files.values()), files[ABOUT].when if ABOUT in files else 0.0) for key, files in keys.items()
        }


def _url(place: str) -> str:
    return place if is_url(place) else f"file://{os.path.abspath(place)}"


def _total(files: Iterable[Found]) -> int:
    return sum(found.size for found in files)
