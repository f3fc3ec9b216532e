"""Runs what was exported, as its user would."""

import os
import subprocess
import sys

from tests.search.studies import ROOT


def run_exported(folder, *arguments):
    """Runs Python in a folder, our packages importable as if they were installed; what it printed.

    Raises:
        AssertionError: it failed; with the end of its errors.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout
