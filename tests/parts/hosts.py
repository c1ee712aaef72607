"""Hosts on this one machine: network namespaces on a switch, with disks and processes of their own.

A host shares nothing with others but what is installed here, as machines of one image do. Needs
root and `ip`; Ray, S3 and MLflow on them are real, and find each other by address only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NETWORK = "10.77.0"
_SWITCH = "lotlip-switch"
ROOT = Path(__file__).parents[2]


def reason_to_skip() -> str:
    """Why there can't be hosts here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if ROOT.is_relative_to("/tmp"):
        return "this checkout lies in /tmp, of which each host has its own"
    missing = [name for name in ("ip", "unshare", "mount") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed"
    trial = f"{_SWITCH}-trial"
    done = subprocess.run(["ip", "netns", "add", trial], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespaces: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", trial], check=True)
    return ""


@dataclass(frozen=True)
class Host:
    """One machine."""

    name: str
    address: str
    folder: Path
    """Its disk: /tmp, the home and /dev/shm of what runs there lie in it."""
    environment: Mapping[str, str]

    def run(self, *command: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end."""
        return subprocess.run(
            self._command(command),
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start what runs on; it and all that it starts end when the process is killed."""
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                self._command(command),
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def unplug(self) -> None:
        """Cut its cable."""
        _ip("-n", _SWITCH, "link", "set", self.name, "down")

    def plug(self) -> None:
        _ip("-n", _SWITCH, "link", "set", self.name, "up")

    def _command(self, command: Sequence[str]) -> list[str]:
        # /tmp last, since the others lie there.
        mounts = [("shm", "/dev/shm"), ("hosts", "/etc/hosts"), ("tmp", "/tmp")]
        binds = " && ".join(f"mount --bind {self.folder / name} {at}" for name, at in mounts)
        script = f'mount --make-rprivate / && {binds} && hostname {self.name} && exec "$@"'
        own = ["--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        return [
            *("ip", "netns", "exec", f"lotlip-{self.name}", "unshare", *own),
            *("sh", "-c", script, "sh", *command),
        ]


@contextmanager
def hosts(
    names: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[list[Host]]:
    """Machines that reach each other, and nothing else. What was started on them must be ended
    before."""
    made = [_SWITCH]
    try:
        _ip("netns", "add", _SWITCH)
        _ip("-n", _SWITCH, "link", "add", "bridge", "type", "bridge")
        _ip("-n", _SWITCH, "link", "set", "bridge", "up")
        addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, start=1)}
        for name, address in addresses.items():
            made.append(f"lotlip-{name}")
            _add(name, address)
            _make_disk(folder / name, addresses)
        yield [
            Host(name, address, folder / name, {**environment, "HOME": "/tmp/home"})
            for name, address in addresses.items()
        ]
    finally:
        for namespace in made:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", namespace)


def _add(name: str, address: str) -> None:
    namespace = f"lotlip-{name}"
    _ip("netns", "add", namespace)
    _ip("-n", namespace, "link", "set", "lo", "up")
    # Its cable, the other end of which is at the switch.
    _ip("-n", _SWITCH, "link", "add", name, "type", "veth", "peer", "eth0", "netns", namespace)
    _ip("-n", _SWITCH, "link", "set", name, "master", "bridge", "up")
    _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", namespace, "link", "set", "eth0", "up")


def _make_disk(folder: Path, addresses: Mapping[str, str]) -> None:
    for name in ("tmp/home", "shm"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
    (folder / "hosts").write_text("\n".join(lines) + "\n")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
