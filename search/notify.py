"""Tells a command or a webhook of the user's when a study ends, stalls, and goes on; never in the study's way."""

import json
import os
import shlex
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable

from search.terminal import span
from search.tracking.credentials import FROM_ENVIRONMENT, is_webhook, masked
from trainables.errors import InputError

LIMIT_S = 20.0  # what a command or a server may take
DONE, FAILED, INTERRUPTED, STALLED, RUNNING = "done", "failed", "interrupted", "stalled", "running"  # the last: again


def read_target(notify: str | None) -> str | None:
    """The command or webhook that a study's `notify` means, from the environment where it says `env:NAME`.

    Raises:
        InputError: the variable is not set, or there is no such command.
    """
    if notify is None:
        return None
    target = notify
    if notify.startswith(FROM_ENVIRONMENT):
        name = notify.removeprefix(FROM_ENVIRONMENT)
        target = os.environ.get(name, "").strip()
        if not target:
            raise InputError(f"notify: {name} is not set in this environment; export it: a command, or a webhook's URL")
    if is_webhook(target):
        return target
    try:
        words = shlex.split(target)
    except ValueError as error:
        raise InputError(f"notify: its command cannot be read ({error}); quote it as in a shell") from error
    if not words or not shutil.which(words[0]):
        name = words[0] if words else ""
        raise InputError(f"notify: there is no command '{name}'; give one that this machine has, or a webhook's URL")
    return target


class Notifier:
    """Watches one study while it is entered, and tells of its end.

    Args:
        target: what `read_target` gave; None tells nobody.
        study: its name.
        stalled_s: seconds without a report after which the study has stalled; None is never.
        note: is told, once, that a notification did not arrive.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        target: str | None,
        study: str,
        stalled_s: float | None,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._target, self._study, self._stalled_s = target, study, stalled_s
        self._note, self._clock = note, clock
        self._failed = False
        self._reported, self._stalled = clock(), False
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._watch, name="notify", daemon=True)

    def __enter__(self):
        if self._target and self._stalled_s:
            self._thread.start()
        return self

    def __exit__(self, *error):
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident:
            self._thread.join(LIMIT_S)

    def report(self, *_) -> None:
        """The study has had a report."""
        with self._changed:
            self._reported = self._clock()
            if self._stalled:
                self._changed.notify()

    def tell(self, state: str, text: str) -> None:
        """Tells of a state; returns when that is done, or within `LIMIT_S`."""
        if not self._target:
            return
        try:
            if is_webhook(self._target):
                _post(self._target, {"study": self._study, "state": state, "text": f"{self._study}: {text}"})
            else:
                _run(self._target, {"OFAKD_STUDY": self._study, "OFAKD_STATE": state, "OFAKD_MESSAGE": text})
        except Exception as error:  # whatever it is, it is not the study's affair
            if not self._failed:
                self._failed = True
                self._note(f"notify: it was not told '{state}' ({self._why(error)})")

    def _why(self, error: Exception) -> str:
        """An error without the target, which may be a secret."""
        if isinstance(error, subprocess.CalledProcessError):
            return f"the command ended with {error.returncode}"
        if isinstance(error, subprocess.TimeoutExpired):
            return f"the command took longer than {LIMIT_S:.0f} s"
        said = " ".join(str(error).split())[:200]
        return masked(said.replace(self._target, "***")) or type(error).__name__

    def _watch(self) -> None:
        """Tells of a stall once, and once when it is over."""
        while True:
            with self._changed:
                since = self._clock() - self._reported
                if self._closing:
                    return
                late = since >= self._stalled_s
                if late == self._stalled:
                    self._changed.wait(None if late else self._stalled_s - since)
                    continue
                self._stalled = late
            if late:
                self.tell(STALLED, f"stalled: no report for {span(since)}")
            else:
                self.tell(RUNNING, "goes on: there are reports again")


def _post(url: str, content: dict[str, str]) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(content).encode(), headers, method="POST")
    urllib.request.urlopen(request, timeout=LIMIT_S).close()


def _run(command: str, about: dict[str, str]) -> None:
    subprocess.run(
        shlex.split(command),
        env={**os.environ, **about},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=LIMIT_S,
        check=True,
    )
