"""Where a study's time went: by what was trained, from its records, and by phase of its sessions, from its account."""

from itertools import chain
from typing import TYPE_CHECKING, Any

from search.account import gpu_seconds
from search.ledger import Ledger
from search.settings import Settings

if TYPE_CHECKING:
    import pandas

PARTS = {"trial": "trials", "baseline": "baselines", "finalist": "finalists"}
TEACHER, WORKING = "teacher", ("search", "finalists")  # phases of `search.account`


def duration(seconds: float) -> str:
    """Seconds as people say them: `8 s`, `3 min 05 s`, `2 h 40 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def by_part(ledger: Ledger, settings: Settings, account: dict[str, Any]) -> "pandas.DataFrame":
    """One row for the teacher (where the account tells its time), the trials, the baselines and the finalists.

    `training` is what their epochs took, each in its lane; GPU-hours and money, where a price is set, are that time's.
    """
    import pandas

    rows = []
    if (spent := _phases(account, "held_s").get(TEACHER)) is not None:
        gpu_s = _gpu_s(account, settings)[TEACHER]
        rows.append({"part": "teacher", "runs": None, "epochs": None, "seconds": spent, "gpu_s": gpu_s})
    for role, part in PARTS.items():
        if records := ledger.of_role(role):
            seconds = sum(record.seconds for record in records)
            rows.append(
                {
                    "part": part,
                    "runs": len(records),
                    "epochs": sum(record.epoch for record in records),
                    "seconds": seconds,
                    "gpu_s": seconds * settings.gpus_per_trial,
                }
            )
    rows.append({"part": "all", **{name: _sum(rows, name) for name in ("runs", "epochs", "seconds", "gpu_s")}})
    for row in rows:
        row["training"] = duration(row.pop("seconds"))
        row |= _priced(row.pop("gpu_s"), settings)
    return pandas.DataFrame(rows).astype(object).where(lambda frame: frame.notna(), None)


def by_phase(ledger: Ledger, settings: Settings, account: dict[str, Any]) -> "pandas.DataFrame":
    """Wall time, what lanes were at work in it, and what they waited: a row a phase of the account.

    GPU-hours and money are of the lanes at work, which hold their GPUs between epochs too: this is what budgets count.
    A study without an account has one row, from its first record's start to its last one's end, pauses included.
    """
    import pandas

    lanes = settings.lanes
    walls, held, gpu_s = _phases(account, "wall_s"), _phases(account, "held_s"), _gpu_s(account, settings)
    if not walls:
        ended = [record.ended for record in ledger.records.values() if record.ended]
        started = min((record.started for record in ledger.records.values()), default=0.0)
        span = max(ended, default=started) - started
        walls, held = {"first start to last end": span}, {}
        trained = sum(record.seconds for record in ledger.records.values())
        held["first start to last end"] = trained / settings.pack
        gpu_s["first start to last end"] = trained * settings.gpus_per_trial
        working = tuple(walls)
    else:
        working = WORKING
    rows = [
        {
            "phase": phase,
            "wall time": duration(wall),
            "lanes at work": duration(held[phase]) if held.get(phase) else None,
            "lanes waiting": duration(max(0.0, lanes * wall - held.get(phase, 0.0))) if phase in working else None,
            **(_priced(gpu_s[phase], settings) if held.get(phase) else {}),
        }
        for phase, wall in walls.items()
    ]
    if len(rows) > 1:
        rows.append(
            {
                "phase": "all",
                "wall time": duration(sum(walls.values())),
                "lanes at work": duration(sum(held.values())),
                "lanes waiting": None,
                **_priced(sum(gpu_s.values()), settings),
            }
        )
    return pandas.DataFrame(rows).astype(object).where(lambda frame: frame.notna(), None)


def _phases(account: dict[str, Any], kind: str) -> dict[str, float]:
    """The seconds of all sessions by phase."""
    return _sum_phases([session.get(kind, {}) for session in account.get("sessions", [])])


def _gpu_s(account: dict[str, Any], settings: Settings) -> dict[str, float]:
    """The GPU-seconds of all sessions by phase."""
    return _sum_phases([gpu_seconds(session, settings.gpus_per_lane) for session in account.get("sessions", [])])


def _sum_phases(sessions: list[dict[str, float]]) -> dict[str, float]:
    return {phase: sum(one.get(phase, 0.0) for one in sessions) for phase in dict.fromkeys(chain(*sessions))}


def _priced(gpu_s: float, settings: Settings) -> dict[str, Any]:
    if not settings.gpus_per_trial:
        return {}
    hours = gpu_s / 3600
    price = settings.price_per_gpu_hour
    return {"GPU-hours": f"{hours:.2f}", **({"money": f"{hours * price:.2f}"} if price else {})}


def _sum(rows: list[dict[str, Any]], name: str) -> Any:
    return sum(row[name] for row in rows if row[name] is not None)
