"""What `search/jobs.py` shows of studies."""

import re
import time
from collections.abc import Iterable
from typing import Any

from search.session_log import of_last_session
from search.terminal import person_console, span


def facts(
    name: str, state: str, started: float | None, took: float, who: str, where: str, sessions: int | None
) -> None:
    """One study: who runs it, where it lies and, of a cluster's, how many sessions it had."""
    print(f"study:   {name}")
    print(f"state:   {state}{f' ({who})' if who else ''}")
    print(f"started: {_when(started)}, took {span(took)}{f', session {sessions}' if (sessions or 0) > 1 else ''}")
    print(f"where:   {where}")


def progress(log: str, going: bool) -> None:
    """What the latest session's lines say of its trials, and the last of them."""
    counts, last = read_progress(of_last_session(log), going)
    if counts:
        told = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
        print(f"trials:  {told} in this session")
    for number, line in enumerate(last):
        print(f"{'' if number else 'now:' if going else 'ended:':<8} {line}")


def table(rows: Iterable[tuple[Any, ...]]) -> None:
    """All studies: name, state, start, seconds, who is at it and where it lies, a row each."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for title in ("study", "state", "started", "took", "by"):
        shown.add_column(title, no_wrap=True)
    shown.add_column("where", overflow="fold")
    for study, state, started, took, who, where in rows:
        shown.add_row(study, state, _when(started), span(took), who, where)
    person_console().print(shown if shown.row_count else "no study")


def _when(started: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(started)) if started else "unknown"


def read_progress(log: str, going: bool) -> tuple[dict[str, int], list[str]]:
    """How many trials ended in which state, by the lines of a session, and what it is doing, or how it ended."""
    counts: dict[str, int] = {}
    for state in re.findall(r"^\[[\d:]+\] trial \S+ (complete|pruned|failed)\b", log, re.M):
        counts[state] = counts.get(state, 0) + 1
    lines = [line for line in log.splitlines() if line.strip()]
    if not going:
        lines = [line for line in lines if re.match(r"(best|ended by|spent|error|interrupted)\b", line)] or lines
    return counts, lines[-3:]
