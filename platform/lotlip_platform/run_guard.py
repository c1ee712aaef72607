"""A small process that ends an MLflow run truthfully when the one that trained could not.

It waits for its standard input to close. A trainer that ends in order says so first; one that was
killed outright (kill -9, out of memory) says nothing, and the guard marks the run as KILLED.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

_DONE = b"done"


class RunGuard:
    """Watches over a run for as long as this process lives."""

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, tracking_uri, run_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal must not reach it
        )

    def release(self) -> None:
        """The run has been ended in order."""
        self._say(_DONE)
        self._process.wait()

    def abandon(self, status: str) -> None:
        """The run could not be ended: the guard goes on trying on its own."""
        self._say(status.encode())

    def _say(self, words: bytes) -> None:
        assert self._process.stdin is not None
        # Nothing is left to tell a guard that was itself killed.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(words)
            self._process.stdin.close()


def watch(tracking_uri: str, run_id: str) -> None:
    """The guard's whole life."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a stopping job signals everything at once
    said = sys.stdin.buffer.read()
    if said == _DONE:
        return
    # Imported now only: it takes seconds and hundreds of megabytes.
    from lotlip_platform.tracking import end_orphan

    end_orphan(tracking_uri, run_id, said.decode() or "KILLED")


if __name__ == "__main__":
    watch(*sys.argv[1:])
    os._exit(0)
