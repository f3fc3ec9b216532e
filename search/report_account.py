"""The report's account of a study: what it cost, how it ended, and how to repeat it."""

import time
from collections import Counter
from typing import Any

import pandas

from search import spending
from search.ledger import COMPLETE, FAILED, PRUNED, RUNNING, Ledger
from search.report_facts import SETTINGS, Facts
from search.report_page import Block, Code, Table, Text


def cost(facts: Facts, ledger: Ledger) -> list[Block]:
    """What each part took, in epochs, hours and money."""
    settings, account = facts.settings, facts.account
    blocks: list[Block] = [
        Table(spending.by_part(ledger, settings, account)),
        Table(spending.by_phase(ledger, settings, account)),
    ]
    lanes = f"{settings.lanes} lane(s), each with {settings.workers_per_trial} worker(s)"
    gpus = f"{settings.gpus_per_lane:g} GPU(s)" if settings.gpus_per_trial else "no GPU"
    gpus += f" for {settings.pack} trials side by side" if settings.pack > 1 else ""
    text = f"Training is what the epochs took, summed over {lanes} and {gpus}."
    if lost := account.get("lost_epochs"):
        text += f" {lost} further epochs were of runs that were begun anew."
    if not account:
        text += " This study has no account.json, so start-up, the teacher and pauses are not told apart."
    if account and settings.gpus_per_trial:
        text += " The phases' GPU-hours are what a budget counts: a lane at work holds its GPUs between epochs too."
    if settings.gpus_per_trial and not settings.price_per_gpu_hour:
        text += " --set price_per_gpu_hour=N gives the cost in money."
    return [*blocks, Text(text, note=True)]


def end(facts: Facts, ledger: Ledger) -> list[Block]:
    """What ended the study, and how its runs ended, with the reasons."""
    trials = ledger.of_role("trial")
    ended = sum(record.state != RUNNING for record in trials)
    if by := facts.account.get("ended_by"):
        text = f"Ended by: {by}."
    elif ended >= facts.settings.trials:
        text = f"All {ended} trials were made."
    else:
        text = f"{ended} of {facts.settings.trials} trials have ended; --resume goes on with the rest."
    states = (COMPLETE, PRUNED, FAILED, RUNNING)
    counts = Counter((record.role, record.state) for record in ledger.records.values())
    rows = [
        {"": part, **{state: counts[role, state] for state in states}}
        for role, part in spending.PARTS.items()
        if ledger.of_role(role)
    ]
    blocks: list[Block] = [Text(text), Table(pandas.DataFrame(rows))]
    failed = [record for record in ledger.records.values() if record.state == FAILED]
    if failed:
        rows = [
            {"failed": one.trial_id, "at epoch": one.epoch, "reason": one.reason.strip() or "not known"}
            for one in failed
        ]
        blocks.append(Table(pandas.DataFrame(rows)))
    if reasons := Counter(record.reason for record in ledger.records.values() if record.state == PRUNED):
        rows = [{"pruned": count, "reason": reason} for reason, count in reasons.most_common()]
        blocks.append(Table(pandas.DataFrame(rows)))
    return blocks


def repeat(facts: Facts) -> list[Block]:
    """The commands and settings that make such a study again."""
    return [
        *_sessions(facts),
        Text(f"The space as it was last is in space.py, and all that was settled then in {SETTINGS}:"),
        Code(facts.written, "yaml"),
    ]


def _sessions(facts: Facts) -> list[Block]:
    """Each session's command and what it said at its start; in older studies, which kept neither, the flags of all."""
    sessions = facts.account.get("sessions", [])
    known = [bool(session.get("command")) for session in sessions]
    blocks: list[Block] = []
    if not known or not all(known):
        words = "The flags of its sessions together, later ones above earlier ones"
        blocks += [Text(f"{words} (give another --name to make a study of its own):"), Code(facts.command, "sh")]
    if any(known):
        words = "Each session's command, and what it said at its start"
        blocks.append(Text(f"{words} (another --name in all of them makes a study of its own):"))
        for number, session in enumerate(sessions, 1):
            blocks += _session(number, session)
    return blocks


def _session(number: int, session: dict[str, Any]) -> list[Block]:
    started = session.get("started")
    when = "" if started is None else time.strftime(", %Y-%m-%d %H:%M", time.localtime(started))
    command = session.get("command")
    blocks: list[Block] = [Text(f"Session {number}{when}:{'' if command else ' its command was not kept.'}")]
    blocks += [Code(command, "sh")] if command else []
    return blocks + [Text(note, note=True) for note in session.get("notes", [])]
