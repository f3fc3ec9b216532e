"""A study of ours in a process of its own, for the benchmarks that look at whole studies."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_study(folder: Path, space: str, flags: dict[str, Any], fields: dict[str, Any]) -> tuple[float, list[dict]]:
    """Runs a space in a folder of its own.

    Args:
        space: its file's name in `spaces/`.
        flags: of `search/run.py`, by name without dashes.
        fields: for `--set`.

    Returns:
        Its wall time in seconds, and the ledger's records of its trials, in the order they ended.

    Raises:
        RuntimeError: it failed; with the end of its output.
    """
    given = [text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    settings = [f"{name}={value}" for name, value in fields.items()]
    command = [sys.executable, ROOT / "search" / "run.py", "--space", ROOT / "spaces" / space, "--name", "s", *given]
    begun = time.time()
    output = run([*map(str, command), "--set", *settings], folder)
    wall = time.time() - begun
    records = [json.loads(path.read_text()) for path in (folder / "runs" / "s" / "trials").glob("*/record.json")]
    if not records or any(record["state"] != "complete" and "scheduler" not in record["reason"] for record in records):
        raise RuntimeError(f"not all trials ended well:\n{output[-2000:]}")
    return wall, sorted(records, key=lambda record: record["ended"])


def run(command: list[str], folder: Path) -> str:
    """Runs a command in a folder with one thread a process, and returns what it printed.

    Raises:
        RuntimeError: it ended with another code than 0; with the end of its output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    )
    if found.returncode:
        raise RuntimeError(f"{command[1]} ended with {found.returncode}:\n{found.stdout[-2000:]}")
    return found.stdout
