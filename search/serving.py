"""The broker and the lanes of a study, and who looks after them while it runs."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import ray

from search.brokering import start_broker
from search.cluster_watch import ClusterWatch
from search.lanes import Lanes
from search.ledger import Ledger
from search.paths import is_url
from search.preflight import Plan
from search.sharing import Sharing
from search.stored import store_url
from search.waiting import Waiting
from search.watchdog import Watchdog


@contextlib.contextmanager
def served(
    plan: Plan, folder: Path, ledger: Ledger, tracker, view, splits, on_lost: Callable[[str], None]
) -> Iterator[tuple]:
    """Gives the broker's handle and the lanes, which come up; none of them is left after it.

    Args:
        folder: the study's.
        ledger, tracker, view: the study's.
        splits: the data, where they have been read already.
        on_lost: told why where the cluster that was joined is gone; ends the process.
    """
    settings = plan.settings
    broker = start_broker(folder / "ray" / "broker.jsonl")
    if plan.curves:
        from search.simulation import SimulatedLanes

        lanes = SimulatedLanes(broker, settings.concurrency, plan.curves, plan.objectives)
    else:
        lanes = Lanes(broker, settings, folder / "ray", splits)
        lanes.note = view.note
    lanes.start()
    try:
        with contextlib.ExitStack() as beside:
            if settings.address:
                beside.enter_context(ClusterWatch(on_lost))
            beside.enter_context(Waiting(lanes, view, tracker))
            beside.enter_context(Watchdog(broker, ledger, settings, view.note))
            if settings.address and not plan.curves:
                beside.enter_context(Sharing(lanes, settings, folder))
            if settings.disk_budget and not plan.curves:
                from search.housekeeping import Housekeeping  # it brings NumPy and fsspec

                url, store = settings.storage.rstrip("/"), store_url(settings, folder.parent)
                place = f"{url}/{folder.name}" if is_url(url) else str(folder)
                budget, finalists = settings.disk_budget, settings.finalists
                beside.enter_context(Housekeeping(place, store, ledger, budget, finalists, view.note))
            yield broker, lanes
    finally:
        if not isinstance(sys.exception(), KeyboardInterrupt):  # at once: Ray's processes end with this one
            view.phase("stopping the lanes")
            ray.get(broker.close.remote())
            if not lanes.close():
                view.note("a lane does not quit; it ends with Ray")
