"""Real MLflow servers for tests, each in a process group of its own."""

import os
import signal
import socket
import urllib.request


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def stop(process) -> None:
    """Ends a server and the worker processes in its own group, which it would leave behind."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True
