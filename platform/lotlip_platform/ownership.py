"""Who trains a run: one process at a time, wherever it is.

RUN/owner.json in the store names it, and holds a beat that changes as long as it lives.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from lotlip.errors import ConfigError, LotlipError
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.service_process import living

_BEAT_S = 10.0
_SILENCE_S = 25.0
"""After which a process that gives no beat is taken for dead."""
_SETTLE_S = 0.3


class Owner:
    """The right to train a run, as long as it isn't lost to another process."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.token = uuid.uuid4().hex
        me = psutil.Process()
        self._record = {
            "token": self.token,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": me.pid,
            "created": me.create_time(),
        }
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._is_lost = False

    def check(self) -> None:
        """Raises: ConfigError if another process took over, since this one seemed dead."""
        if self._is_lost:
            raise ConfigError(f"another process has taken over {self._folder.uri}: this one ends")

    def _beat(self) -> None:
        """Show life until the end."""
        beats = 0
        while not self._ended.wait(_BEAT_S):
            beats += 1
            with contextlib.suppress(LotlipError):  # a store that is away takes nobody's beat
                if self._folder.read_owner().get("token", self.token) != self.token:
                    self._is_lost = True
                    return
                self._folder.write_owner({**self._record, "beat": beats})

    def take(self) -> None:
        self._folder.write_owner({**self._record, "beat": 0})
        time.sleep(_SETTLE_S)  # two may have come at once; the later one has it
        self._is_lost = self._folder.read_owner().get("token") != self.token
        self.check()
        self._beating.start()

    def cover(self, folder: RunFolder) -> None:
        """Have another folder, too, which only the owner of this one uses."""
        folder.write_owner({**self._record, "beat": 0})

    def give_back(self) -> None:
        self._ended.set()
        if self._beating.is_alive():
            self._beating.join()  # or its last beat might come after the end
        with contextlib.suppress(LotlipError):
            if self._folder.read_owner().get("token") == self.token:
                self._folder.delete_owner()


@contextmanager
def owned(folder: RunFolder) -> Iterator[Owner]:
    """The run folder is this process's alone for the length of the block.

    Raises: ConfigError if another process is at work on it.
    """
    other = folder.read_owner()
    if is_alive(folder, other):
        raise ConfigError(
            f"{folder.uri} is being worked on by process {other['pid']} on {other['host']}: stop "
            "that first, or give this run another name=..."
        )
    owner = Owner(folder)
    try:
        owner.take()
        yield owner
    finally:
        owner.give_back()


def is_alive(folder: RunFolder, owner: Mapping[str, Any]) -> bool:
    """Whether the process that `folder.read_owner` told of is at work.

    It takes a while to tell of one that is not on this machine.
    """
    if not owner:
        return False
    if owner.get("machine") == _machine():
        return living(owner["pid"], owner["created"]) is not None
    deadline = time.monotonic() + _SILENCE_S
    while time.monotonic() < deadline:
        now = folder.read_owner()
        if now.get("token") != owner["token"] or now["beat"] != owner["beat"]:
            return bool(now)
        time.sleep(1.0)
    return False


def _machine() -> str:
    """Tells apart machines, and containers, in which process numbers mean the same."""
    found = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not on Linux
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(found)
