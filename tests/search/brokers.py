"""A broker without Ray, and what a proxy and a lane do with it."""

import asyncio
from collections import Counter

from search.broker import Broker

JOB = {"kind": "trial", "known_epoch": 0}
WHO = {"pid": 1}


class Followed(Broker):
    """A broker whose events are asked for one after another, as a proxy does."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._told = Counter()

    async def event(self, trial_id):
        """The trial's next event; of a report's metrics the epoch alone."""
        self._told[trial_id] += 1
        kind, payload = await self.next(trial_id, self._told[trial_id] - 1)
        return kind, {"epoch": payload["epoch"]} if kind == "report" else payload


def run(scenario, *arguments):
    """Runs a scenario against a fresh broker, in one event loop and within a generous limit."""
    return asyncio.run(asyncio.wait_for(scenario(Followed(*arguments)), 20))


async def got(broker, lane=0, at_work=()):
    """A job that arrived in its lane."""
    job = await broker.take(lane, WHO, 1, at_work)
    await broker.begun(job["trial_id"], job["attempt"])
    return job


async def answered(broker, trial_id, attempt, epoch, go_on):
    """A report and its verdict."""
    report = asyncio.ensure_future(broker.report(trial_id, attempt, {"epoch": epoch}))
    assert await broker.event(trial_id) == ("report", {"epoch": epoch})
    await broker.verdict(trial_id, epoch, go_on)
    return await report
