"""Machines that do not share an address, a disk or a package, of network and mount namespaces on this one."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest


@dataclass
class Machine:
    """One of them.

    Attributes:
        address: its own; the others reach it there, and nobody at 127.0.0.1.
        prefix: what runs a command on it.
    """

    address: str
    prefix: tuple[str, ...] = ()


@contextlib.contextmanager
def machines(count: int, disk: Path) -> Iterator[list[Machine]]:
    """So many on a network of their own, and before them this one, as the network sees it.

    Args:
        disk: a folder that each of them but this one has as its own, empty at first.
    """
    if os.getuid() or subprocess.run(["unshare", "--net", "--mount", "true"], check=False).returncode:
        pytest.skip("this user may not make network namespaces")
    mark = f"ofakd{os.getpid()}"[-11:]  # the kernel takes 15 letters for an interface
    net = f"10.{os.getpid() // 250 % 250}.{os.getpid() % 250}"
    made = [Machine(f"{net}.1")]
    disk.mkdir(exist_ok=True)
    try:
        _ip("link", "add", mark, "type", "bridge")
        _ip("addr", "add", f"{net}.1/24", "dev", mark)
        _ip("link", "set", mark, "up")
        for number in range(count):
            name, address = f"{mark}-{number}", f"{net}.{number + 2}"
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", name, "master", mark, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _ip("-n", name, "link", "set", interface, "up")
            own = ("sh", "-c", f'mount -t tmpfs none {disk} && exec "$@"', "sh")
            made.append(Machine(address, ("ip", "netns", "exec", name, *own)))
        yield made
    finally:
        for number in range(len(made) - 1):
            _ip("netns", "del", f"{mark}-{number}")
        subprocess.run(["ip", "link", "del", mark], check=False)


def mounted(*mounts: str) -> tuple[str, ...]:
    """What runs a command that alone sees such mounts."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount anything for one process")
    return "unshare", "--mount", "sh", "-c", f'{" && ".join(mounts)} && exec "$@"', "sh"


def other_timm(folder: Path) -> str:
    """A mount that makes the installed timm one of another version."""
    other = folder / "METADATA"
    other.write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.4.12\n")
    timm = metadata.distribution("timm").locate_file(f"timm-{metadata.version('timm')}.dist-info/METADATA")
    return f"mount --bind {other} {timm}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
