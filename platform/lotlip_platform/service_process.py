"""Background processes that outlive the command that started them."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

CLOCK_TOLERANCE_S = 2.0
"""psutil derives creation times from the boot time, which moves when the clock is set."""
TERM_GRACE_S = 10.0


@dataclass(frozen=True)
class Service:
    """A local service as recorded on disk."""

    name: str
    url: str
    """The page that people open."""
    address: str
    """What clients connect to: the url again, or host:port for Ray."""
    health: tuple[str, ...]
    """URLs that answer once the service can be used."""
    pid: int
    create_time: float


def start(
    command: Sequence[str], *, folder: Path, log: Path, environment: Mapping[str, str]
) -> tuple[int, float]:
    """Start a session of its own that writes to `log`; its process id and creation time."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # It is meant to outlive this process, so Popen must not warn that it still runs.
    process.returncode = 0
    return process.pid, psutil.Process(process.pid).create_time()


def is_alive(service: Service) -> bool:
    """Whether this very process still runs; another one with its number doesn't count."""
    return living(service.pid, service.create_time) is not None


def is_healthy(service: Service) -> bool:
    """Whether every health URL answers."""
    return all(_answers(url) for url in service.health)


def end(service: Service) -> None:
    """End the service and all that it started: SIGTERM to it, SIGKILL to the rest after 10 s."""
    leader = living(service.pid, service.create_time)
    family = _family(service, leader)
    for process in [leader] if leader else family:
        _signal(process, kill=False)
    _, left = psutil.wait_procs(family, timeout=TERM_GRACE_S)
    for process in {*left, *_family(service, None)}:
        _signal(process, kill=True)
    psutil.wait_procs(left, timeout=TERM_GRACE_S)


def port_or_free(preferred: int) -> int:
    """The preferred port of 127.0.0.1 if nobody listens on it, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise OSError("no free port on 127.0.0.1")


def last_line(log: Path) -> str:
    """The last line of a log that says something, without colours."""
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    return next((line for line in reversed(lines) if line), "it wrote nothing")


def living(pid: int, create_time: float) -> psutil.Process | None:
    """The process of this number if it is the one that was created then, and it still runs."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - create_time) < CLOCK_TOLERANCE_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _family(service: Service, leader: psutil.Process | None) -> list[psutil.Process]:
    """The leader, its descendants, and those of its session that it left behind."""
    family: set[psutil.Process] = set()
    if leader is not None:
        family |= {leader, *leader.children(recursive=True)}
    if leader is None and _is_reused(service):
        return []
    for process in psutil.process_iter():
        try:
            if (
                os.getsid(process.pid) == service.pid
                and process.uids().real == os.getuid()
                and process.create_time() > service.create_time - CLOCK_TOLERANCE_S
            ):
                family.add(process)
        except (psutil.Error, OSError):
            continue  # It ended meanwhile, or is not ours to look at.
    return list(family)


def _is_reused(service: Service) -> bool:
    """Whether another process has the service's number now."""
    try:
        created = psutil.Process(service.pid).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(created - service.create_time) >= CLOCK_TOLERANCE_S


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        pass


def _answers(url: str) -> bool:
    # The services are on this machine: a proxy of the environment must not be asked for them.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500
    except (OSError, http.client.HTTPException):
        return False


def wait_until_healthy(service: Service, timeout_s: float) -> bool:
    """False if the service ended or did not answer in time."""
    deadline = time.monotonic() + timeout_s
    while is_alive(service) and time.monotonic() < deadline:
        if is_healthy(service):
            return True
        time.sleep(0.1)
    return False
