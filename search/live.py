"""What a person sees while a study runs: a live picture on a terminal, lines elsewhere."""

import threading
import time
from collections import Counter
from collections.abc import Iterable

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from search.ledger import COMPLETE, FAILED, PRUNED, TrialRecord
from search.objective import PERCENT, TOP1, format_value
from search.tracking.facts import as_text
from trainables.config import fields_read

STATE_STYLES = {COMPLETE: "green", PRUNED: "yellow", FAILED: "red"}
SHORT = {"eps": "eps", "temperature": "T", "stages": "stages"}
RUNNING_ROWS, FINISHED_ROWS = 8, 5  # more would not fit on a small terminal


def make_view(
    console: Console,
    total: int,
    *,
    study: str = "",
    pair: str = "",
    finished: Iterable[TrialRecord] = (),
    log: Console | None = None,
) -> "View":
    """The view that fits the console.

    Args:
        console: where to show it.
        total: the study's trials and baselines together.
        study: its name.
        pair: teacher and student, for the header.
        finished: the trials that an earlier session has finished.
        log: where to tell events as lines besides.
    """
    view = LiveView if console.is_terminal else PlainView
    return view(console, total, study, pair, finished, log)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


def value(record: TrialRecord) -> str:
    """What ranks it, at its last epoch."""
    return format_value(record.objective, record.value)


def lead(record: TrialRecord, over: TrialRecord) -> str:
    """By how much its value is above another one's, with the sign that the values give."""
    difference = record.value - over.value
    return f"{difference:+.2f} points" if record.objective in PERCENT else f"{difference:+.4g}"


def name(record: TrialRecord) -> str:
    return record.trial_id if record.role == "finalist" else f"{record.role} {record.trial_id}"


def settings(record: TrialRecord, names: dict[str, str], joint: str) -> str:
    """The most telling settings on one line, of those that the trial's distiller reads; a baseline's name says it all.

    A distiller other than OFA is named, and what was searched of its own follows.
    """
    if record.role != "trial" and not record.params:
        return ""
    config, distiller = record.config, record.config.get("distiller", "ofa")
    read = fields_read(distiller, config.get("curriculum_temperature", False))
    if distiller != "ofa":
        own = [param.partition("@")[0] for param in record.params if "@" in param]
        names = {"distiller": "distiller", **names, **{field: names.get(field, field) for field in own}}

    def number(value) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    def text(value) -> str:
        values = value if isinstance(value, list) else [value]
        return as_text([number(entry) for entry in values])

    shown = {short: config[key] for key, short in names.items() if key in config and key in read}
    return " ".join(f"{short}{joint}{text(value)}" for short, value in shown.items())


class View:
    """Keeps count of a study; the two kinds differ in what they show of it. Safe to call from several threads."""

    NAMES = {"eps": "eps", "temperature": "temperature", "stages": "stages"}

    def __init__(
        self,
        console: Console,
        total: int,
        study: str,
        pair: str,
        finished: Iterable[TrialRecord],
        log: Console | None = None,
    ):
        self.console, self.total, self.study, self.pair = console, total, study, pair
        self.running: dict[str, TrialRecord] = {}
        self.finished: list[TrialRecord] = []
        self.best: TrialRecord | None = None
        self.baselines: dict[str, TrialRecord] = {}  # the best of each, where it has a search of its own
        self.metric = TOP1  # what ranks the trials
        self._lock = threading.RLock()
        self._start = time.monotonic()
        self._since: dict[str, float] = {}
        self._spent: list[float] = []  # seconds of each trial that ended in this session
        self._lanes = 1  # the most trials seen at a time
        self._waits: tuple[int, int, float, str] | None = None
        self._phase = ""
        self._lines = [log] if log else []  # where events are told as lines; an epoch is no event
        for record in finished:
            self._count(record)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def phase(self, text: str) -> None:
        """Says what the study is at; the latest replaces the one before. Parts after a colon are progress."""
        with self._lock:
            news = text.split(":")[0] != self._phase.split(":")[0]
            self._phase = text
            if news and text:
                self._tell(text)

    def expect(self, total: int) -> None:
        """How many trials, baselines and finalists there are to be in all."""
        with self._lock:
            self.total = total

    def trial_started(self, record: TrialRecord) -> None:
        with self._lock:
            self.running[record.trial_id] = record
            self.metric = record.objective
            self._since[record.trial_id] = time.monotonic()
            self._lanes = max(self._lanes, len(self.running))
            self._tell(f"{name(record)} started  {settings(record, self.NAMES, '=')}".rstrip())

    def trial_epoch(self, record: TrialRecord) -> None:
        """The record has a new epoch; a live view reads it at its next refresh."""

    def trial_ended(self, record: TrialRecord) -> None:
        with self._lock:
            self.running.pop(record.trial_id, None)
            since = self._since.pop(record.trial_id, None)
            if since is not None:
                self._spent.append(time.monotonic() - since)
            self._count(record)
            self._tell(self._ended_in_words(record))

    def _count(self, record: TrialRecord) -> None:
        self.finished.append(record)
        self.metric = record.objective
        if record.state != COMPLETE:
            return
        if record.role == "trial" and (not self.best or record.score > self.best.score):
            self.best = record
        elif record.role == "baseline":
            name = record.of or record.trial_id
            known = self.baselines.get(name)
            if not known or record.score > known.score:
                self.baselines[name] = record

    def lanes(self, up: int, waiting: int, since: float, reason: str) -> None:
        """How the study's lanes stand, where some wait for their place: how many, since when (monotonic) and why."""
        with self._lock:
            before, self._waits = self._waits, (up, waiting, since, reason) if waiting else None
            if (before and before[3]) != (reason or None):
                self._tell(self._waits_in_words() if self._waits else "no lane waits any more")

    def _waits_in_words(self) -> str:
        up, waiting, since, reason = self._waits
        return f"{waiting} of {up + waiting} lane(s) wait, {clock(time.monotonic() - since)}: {reason}"

    def note(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            self._tell(text)
            self._show_note(text)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._start

    @property
    def left(self) -> float | None:
        """Seconds until the end, from the trials that ended so far; None before the first."""
        if not self._spent:
            return None
        mean = sum(self._spent) / len(self._spent)
        now = time.monotonic()
        begun = sum(max(0.0, mean - (now - since)) for since in self._since.values())
        waiting = max(0, self.total - len(self.finished) - len(self.running))
        return (begun + waiting * mean) / self._lanes

    def _tell(self, text: str) -> None:
        """An event, as a line with its time."""
        for console in self._lines:
            console.print(f"[{clock(self.elapsed)}] {text}", soft_wrap=True, markup=False, highlight=False)

    def _show_note(self, text: str) -> None:
        """A hook of a view that shows something else than lines."""

    def _ended_in_words(self, record: TrialRecord) -> str:
        marks = [f"best {value(self.best)}"] if self.best else []
        marks += [f"{baseline.trial_id} {value(baseline)}" for baseline in self.baselines.values()]
        parts = [
            f"{name(record)} {record.state}",
            f"{record.objective} {value(record)}",
            f"({', '.join(marks)})" if marks else "",
            settings(record, self.NAMES, "="),
            " ".join(record.reason.split()),
        ]
        return "  ".join(part for part in parts if part)


class PlainView(View):
    """One line an event, for logs and pipes."""

    def __init__(self, console: Console, *about, **more):
        super().__init__(console, *about, **more)
        self._lines.insert(0, console)


class LiveView(View):
    """The whole study at a glance, redrawn a few times a second."""

    def __enter__(self):
        self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=4)
        self._live.start(refresh=True)
        return self

    def __exit__(self, *error):
        self._live.stop()

    def _show_note(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def render(self) -> Group:
        """The picture as of now."""
        with self._lock:
            parts = [self._header(), self._progress()]
            if self.running:
                parts += [Rule(style="bright_black"), self._running()]
            if self.best or self.baselines:
                parts += [Rule(style="bright_black"), self._standing()]
            if self.finished:
                parts += [Rule(style="bright_black"), self._finished()]
            if self._phase or self._waits:
                parts.append(Rule(style="bright_black"))
            if self._waits:
                parts.append(_line(self._waits_in_words(), "yellow"))
            if self._phase:
                parts.append(_line(self._phase, "dim"))
            return Group(*parts)

    def _header(self) -> Table:
        left = "unknown" if self.left is None else f"about {clock(self.left)}"
        title = Text(self.study, "bold", overflow="ellipsis", no_wrap=True).append(f"  {self.pair}", "not bold dim")
        return _sides(title, Text(f"{clock(self.elapsed)} spent, {left} left", no_wrap=True))

    def _progress(self) -> Group:
        done = Counter(record.state for record in self.finished)
        waiting = max(0, self.total - len(self.finished) - len(self.running))
        counts = Text(no_wrap=True, overflow="ellipsis").append(f"{len(self.running)} running", "cyan")
        for state in (COMPLETE, PRUNED, FAILED):
            counts.append("  ").append(f"{done[state]} {state}", STATE_STYLES[state] if done[state] else "dim")
        counts.append(f"  {waiting} waiting", "dim")
        bar = ProgressBar(total=max(1, self.total), completed=len(self.finished), complete_style="cyan")
        return Group(_sides(bar, Text(f"{len(self.finished)}/{self.total}", no_wrap=True)), counts)

    def _running(self) -> Table:
        table = _table(("running", 16), ("epoch", 9), ("", 8), self._value_column, ("settings", None))
        for record in list(self.running.values())[:RUNNING_ROWS]:
            epochs = record.config["epochs"]
            bar = ProgressBar(total=epochs, completed=record.epoch, width=8, complete_style="cyan")
            epoch = f"{record.epoch}/{epochs}"
            table.add_row(name(record), epoch, bar, value(record), settings(record, SHORT, " "))
        if len(self.running) > RUNNING_ROWS:
            table.add_row(f"and {len(self.running) - RUNNING_ROWS} more", style="dim")
        return table

    def _standing(self) -> Table:
        table = _table(("best so far", 37), self._value_column, ("", None))
        best = self.best
        if best:
            table.add_row(Text(name(best), "bold"), Text(value(best), "bold"), settings(best, SHORT, " "))
        for baseline in self.baselines.values():
            text = Text()
            if best:
                style = "green" if best.score > baseline.score else "red"
                text.append("best is ", "dim").append(lead(best, baseline), style)
            table.add_row(name(baseline), value(baseline), text)
        return table

    def _finished(self) -> Table:
        table = _table(("last finished", 16), ("state", 9), ("epochs", 8), self._value_column, ("", None))
        for record in reversed(self.finished[-FINISHED_ROWS:]):
            why = " ".join(record.reason.split()) if record.state == FAILED else settings(record, SHORT, " ")
            state = Text(record.state, STATE_STYLES[record.state])
            epochs = f"{record.epoch}/{record.config['epochs']}"
            table.add_row(name(record), state, epochs, value(record), why)
        return table

    @property
    def _value_column(self) -> tuple[str, int]:
        return self.metric, max(8, len(self.metric))


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _sides(left, right) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(justify="right")
    grid.add_row(left, right)
    return grid


def _table(*columns: tuple[str, int | None]) -> Table:
    """A borderless table whose columns stand in the same places whatever they hold; None takes what is left."""
    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for title, width in columns:
        justify = "right" if title.startswith("val/") else "left"
        ratio = 1 if width is None else None
        table.add_column(title, width=width, ratio=ratio, no_wrap=True, overflow="ellipsis", justify=justify)
    return table
