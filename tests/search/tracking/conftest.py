"""What the tests of MLflow's side share."""

import subprocess
import sys

import pytest

from tests.search.studies import wait_for
from tests.search.tracking.servers import answers, free_port, stop


@pytest.fixture
def server(tmp_path):
    """The URL of a server on SQLite, and the function that starts it (again)."""
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "s"),
    ]  # fmt: skip
    started = []

    def start():
        with (tmp_path / "server.log").open("a") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True))
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), "the server's start")
        return started[-1]

    yield f"http://127.0.0.1:{port}", start
    for process in started:
        if process.poll() is None:
            stop(process)
