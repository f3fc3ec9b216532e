"""A real MLflow server in a process group of its own, and pages of its UI in a real browser."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.search.studies import wait_for

CHROMIUM, DRIVER = "chromium", "chromedriver"  # Debian's chromium and chromium-driver
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-quic", "--disable-background-networking", "--disable-component-update",
    "--enable-unsafe-swiftshader",  # WebGL without a GPU: Plotly draws with it
    "--window-size=2400,1400",  # the table draws the columns that fit
)  # fmt: skip


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[str, Callable[[], subprocess.Popen]]]:
    """The URI of a server that keeps all in a folder, and what starts it, again too; what was started ends with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "s")]
    started: list[subprocess.Popen] = []

    def healthy() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except OSError:
            return False
        return True

    def start() -> subprocess.Popen:
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        with (folder / "server.log").open("a") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True
            )
        started.append(process)
        wait_for(healthy, "the server's start")
        return process

    try:
        yield f"http://127.0.0.1:{port}", start
    finally:
        for process in started:
            if process.poll() is None:
                stop(process)


def stop(process: subprocess.Popen) -> None:
    """Ends the server and the worker processes in its own group, which it would leave behind."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def chromium(profile: Path):
    """A headless browser under Selenium with a new profile; skips the test, with its reason, where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium")
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which(CHROMIUM), shutil.which(DRIVER)
    if not binary or not driver:
        pytest.skip(f"needs {CHROMIUM} and {DRIVER}: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()
