"""Keeps a study within its disk budget, by removing what no trial needs any more."""

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from search.final import best_record
from search.ledger import COMPLETE, RUNNING, Ledger
from search.periodic import Periodic
from trainables.teacher_store.parts import ABOUT, file_system

LOOKS_EVERY_S = 60.0
WEIGHTS = "student.safetensors"


class Housekeeping(Periodic):
    """Looks after the disk while the study runs.

    What it removes, in this order, until the budget holds: the weights of trials that are not among the best
    `finalists` (`search/export.py --trial` cannot export those any more); and the teacher's answers that other studies
    left, those first that were used longest ago. It never touches what a trial goes on from, what the study's own
    trials read, baselines, finalists and results.

    Args:
        folder: the study's.
        ledger: its records.
        store: where the teacher's answers are kept, a folder or any URL of fsspec's.
        budget: bytes for the study's folder and the teacher's answers together.
        finalists: how many trials the final takes.
        note: told, in one line, where the budget does not hold.
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        store: str,
        budget: int,
        finalists: int,
        note: Callable[[str], None],
    ):
        super().__init__(LOOKS_EVERY_S)
        self._folder, self._ledger, self._budget, self._note = folder, ledger, budget, note
        self._finalists = max(1, finalists)
        self._fs, self._store = file_system(store)
        self._begun, self._told = time.time(), False

    def _look(self) -> None:
        self.tidy()

    def _last(self) -> None:
        self.tidy()

    def tidy(self) -> None:
        """Removes what is not needed, where the budget does not hold."""
        used = self._used()
        for size, remove in self._removable():
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

    def _used(self) -> int:
        files = (path for path in self._folder.rglob("*") if path.is_file())
        return _total(files) + sum(self._answers().values())

    def _removable(self) -> Iterable[tuple[int, Callable[[], None]]]:
        """What may go, the least needed first: its size, and what removes it."""
        for trial_id in self._unneeded():
            path = self._ledger.trial_folder(trial_id) / WEIGHTS
            if path.exists():
                yield path.stat().st_size, path.unlink
        answers = self._answers()
        used = {name: self._used_last(name) for name in answers}
        for name in sorted((name for name in answers if used[name] < self._begun), key=used.get):
            yield answers[name], lambda name=name: self._fs.rm(f"{self._store}/{name}", recursive=True)

    def _unneeded(self) -> list[str]:
        """The ended trials whose weights nobody needs, the worst first."""
        ended = [record for record in self._ledger.of_role("trial") if record.state != RUNNING]
        best = sorted(self._ledger.complete(), key=lambda record: record.scores, reverse=True)[: self._finalists]
        kept = {record.trial_id for record in [*best, *self._ledger.front()]}
        if winner := best_record(self._ledger):
            kept.add(winner.trial_id)
        others = [record for record in ended if record.trial_id not in kept]
        return [one.trial_id for one in sorted(others, key=lambda one: (one.state == COMPLETE, one.scores))]

    def _answers(self) -> dict[str, int]:
        """The bytes of each key's answers."""
        sizes: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            for path, entry in self._fs.find(self._store, detail=True).items():
                name = path.removeprefix(self._store).strip("/").split("/")[0]
                sizes[name] = sizes.get(name, 0) + int(entry["size"] or 0)
        return sizes

    def _used_last(self, name: str) -> float:
        """When a trial began to write a key's answers, or in a local folder to read them, seconds since 1970."""
        with contextlib.suppress(OSError, NotImplementedError):
            return self._fs.modified(f"{self._store}/{name}/{ABOUT}").timestamp()
        return 0.0


def _total(files: Iterable[Path]) -> int:
    total = 0
    for path in files:
        with contextlib.suppress(OSError):  # gone meanwhile
            total += path.stat().st_size
    return total
