"""Running real studies as a user does: the command line in a process of its own, and looking at what is left."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
MAIN_SPACE = str(ROOT / "spaces" / "vit_to_mlp.py")
LIMIT_S = 600  # generous: the machine may be slow

# A small study without a final, whose trials end in every way there is; `{body}` is the search function's.
SPACE = """
import sys
sys.path.insert(0, {root!r})
from search.study import Scale, Study
from tests.conftest import TINY

def space(trial):
{body}

STUDY = Study(
    space=space,
    first_guesses={guesses!r},
    baselines=["scratch"],
    scales={{"embedded": Scale(**{{
        **{{key: value for key, value in TINY.items() if key not in ("stages", "eps")}},
        "teacher_recipe": {{"epochs": 12, "batch_size": 32, "hflip": 0.0, "lr": 2e-3}},
        "finalists": 0,
        **dict({fields}),
    }})}},
)
"""


def write_space(folder: Path, body: str, guesses: list[dict], fields: str = "") -> str:
    """A space file over the tests' tiny pair."""
    path = folder / "space.py"
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    path.write_text(SPACE.format(root=str(ROOT), body=indented, guesses=guesses, fields=fields))
    return str(path)


@dataclass
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str


def start(*arguments: str, cwd: Path, script: str = "run", output: Path | None = None) -> subprocess.Popen:
    """Starts `search/run.py`, or another command, in a process group of its own, as a terminal does.

    What it prints goes to pipes, or to the end of a file.

    One that a shell starts in the background ignores SIGINT, and all that it starts: not these, they are to be stopped.
    """
    with contextlib.ExitStack() as files:
        into = files.enter_context(output.open("a")) if output else subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, str(ROOT / "search" / f"{script}.py"), *arguments],
            cwd=cwd,
            stdout=into,
            stderr=into,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def run(*arguments: str, cwd: Path, script: str = "run") -> Ran:
    """Runs `search/run.py`, or another command, to its end."""
    process = start(*arguments, cwd=cwd, script=script)
    out, err = process.communicate(timeout=LIMIT_S)
    return Ran(process.returncode, out, err)


class Followed:
    """A command whose lines can be read while it runs."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self._out, self._err = [], []
        self._readers = [
            threading.Thread(target=lambda kept=kept, pipe=pipe: [kept.append(line) for line in pipe], daemon=True)
            for kept, pipe in ((self._out, process.stdout), (self._err, process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return "".join(self._out)

    def end(self) -> Ran:
        """Waits until it has ended."""
        code = self.process.wait(LIMIT_S)
        for reader in self._readers:
            reader.join()
        return Ran(code, self.out, "".join(self._err))


def wait_for(condition, what: str, limit: float = LIMIT_S):
    """Waits until a condition gives something; fails with `what` after the limit."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not happen within {limit} s")


def left_behind(folder: Path, within: float = 60) -> list[str]:
    """Processes, but ours, that still know a study's folder or its Ray session after so many seconds."""

    def remaining():
        found = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                if process.pid != os.getpid() and (str(folder) in words or _works_in(process, folder)):
                    found.append(f"{process.pid} {words[:120]}")
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    end = time.monotonic() + within
    while (found := remaining()) and time.monotonic() < end:
        time.sleep(0.5)
    return found


def _works_in(process: psutil.Process, folder: Path) -> bool:
    return Path(process.cwd()).is_relative_to(folder) or process.environ().get("OFAKD_TEST") == str(folder)
