"""The small process beside a training process that brings its journal to MLflow.

What the server does, or doesn't do, touches neither training nor Ray. It goes on when the training
process ends, until all is sent; if that was killed outright (kill -9, out of memory), it ends the
run as KILLED.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from lotlip_platform.journal import Journal

_LOOK_S = 0.5  # between two looks for new entries
_LONGEST_PAUSE_S = 30.0  # between two attempts
_AFTERWARDS_S = 600.0  # how long it tries on when the training process has ended
_GRACE_S = 5.0  # for another attempt at the end, where the last one failed
_HANGS_S = 90.0


class SenderProcess:
    """The training process's side of it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(self._journal.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal must not reach it
        )

    def revive(self) -> None:
        """Start another one if it was killed."""
        if self._process.poll() is not None:
            self._close()
            self._process = self._started()

    def finish(self) -> bool:
        """Wait until all is sent, but not for a server that is away; whether it is.

        If it isn't, the process goes on by itself.
        """
        self.revive()
        self._close()
        began = time.monotonic()
        while self._process.poll() is None:
            waited = time.monotonic() - began
            if waited > _HANGS_S or (waited > _GRACE_S and self._journal.sent().trouble):
                self._process.returncode = 0  # it outlives us, of which Popen must not warn
                return False
            time.sleep(0.05)
        return self._journal.is_sent

    def _close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()


def follow(journal: Journal) -> None:
    """The process's whole life: send until standard input is closed, and then the rest."""
    ended = threading.Event()
    threading.Thread(target=_await_end, args=(journal, ended), daemon=True).start()
    # Imported now only: it takes seconds, in which signals must be heeded already.
    from lotlip_platform.sender import Sender

    with journal.sending(wait=True):
        sender = Sender(journal)
        pause, tried_for = _LOOK_S, 0.0
        while True:
            is_last = ended.is_set()
            if sender.send():
                pause = _LOOK_S
                if is_last:
                    return
            else:
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            if is_last:
                tried_for += pause
                if tried_for > _AFTERWARDS_S:
                    return
                time.sleep(pause)
            else:
                ended.wait(pause)


def _await_end(journal: Journal, ended: threading.Event) -> None:
    """The other end of the pipe closes when the training process ends, however it does."""
    sys.stdin.buffer.read()
    if life := journal.open_life():
        journal.append("end", status="KILLED", life=life)
    ended.set()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a stopping job signals everything at once
    follow(Journal(Path(sys.argv[1])))
    os._exit(0)
