"""Ends the process of a trial that hangs: one that has reported nothing for many times as long as an epoch takes."""

import statistics
from collections import deque
from collections.abc import Callable

from search.ledger import Ledger, TrialRecord
from search.periodic import Periodic
from search.settings import Settings

LOOKS_EVERY_S = 5.0
EPOCHS = 500  # the latest of the study, over which the median is taken
FEWEST = 3  # epochs, before which nobody knows how long one takes


class Watchdog(Periodic):
    """Looks at the trials at work while the study runs.

    A hung trial's worker is killed; Ray Train starts another, and the trial goes on from its last epoch. One that hangs
    again has failed.

    Args:
        broker: the study's; it knows when each trial was last heard of.
        ledger: whose epochs tell how long one takes.
        settings: `hang_factor`, times the median epoch, and `hang_min_s`, seconds, the least.
        note: told, in one line, of what hangs.
    """

    def __init__(self, broker, ledger: Ledger, settings: Settings, note: Callable[[str], None]):
        super().__init__(LOOKS_EVERY_S)
        self._broker, self._settings, self._note = broker, settings, note
        self._took: deque[float] = deque(maxlen=EPOCHS)
        self._longest: dict[str, float] = {}
        for record in ledger.records.values():
            self._took.extend(entry["time/epoch_s"] for entry in record.history if "time/epoch_s" in entry)
        ledger.watch(self._saw)

    def limit_s(self, trial_id: str) -> float | None:
        """After how many seconds of silence a trial hangs; None: never, or nobody knows yet how long an epoch takes."""
        if self._settings.hang_factor is None or len(self._took) < FEWEST:
            return None
        epoch_s = max(statistics.median(self._took), self._longest.get(trial_id, 0.0))
        return max(self._settings.hang_factor * epoch_s, self._settings.hang_min_s)

    def _saw(self, record: TrialRecord) -> None:
        if record.history and (took := record.history[-1].get("time/epoch_s")):
            self._took.append(took)
            self._longest[record.trial_id] = max(took, self._longest.get(record.trial_id, 0.0))

    def _look(self) -> None:
        import ray

        for trial_id, silent_s in ray.get(self._broker.silent.remote()).items():
            limit = self.limit_s(trial_id)
            if limit is None or silent_s < limit:
                continue
            why = f"it hung: no report for {silent_s:.0f} s, where an epoch takes {statistics.median(self._took):.1f} s"
            handle = ray.get(self._broker.hung.remote(trial_id, why))
            if handle is not None:
                ray.kill(handle)
                self._note(f"trial {trial_id}: {why}; its process is ended")
