"""The small process beside a training process that brings its journal to MLflow.

That of a sweep also brings the journals of its trials.

What the server does, or doesn't do, touches neither training nor Ray. It goes on when the training
process ends, until all is sent; if that was killed outright (kill -9, out of memory), it ends the
run as KILLED.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from lotlip_platform.journal import Journal, family

_LOOK_S = 0.5  # between two looks for new entries
_LONGEST_PAUSE_S = 30.0  # between two attempts
_AFTERWARDS_S = 600.0  # how long it tries on when the training process has ended
_GRACE_S = 5.0  # for another attempt at the end, where the last one failed
_HANGS_S = 600.0  # a large model is uploaded in one go
_FIRST_REST_S = 5.0  # before one that has died a second time is started again
_LONGEST_REST_S = 300.0


class SenderProcess:
    """The training process's side of it."""

    def __init__(self, journal: Journal, life: int) -> None:
        self._journal, self._life = journal, life
        self._since_ms = int(time.time() * 1000)
        self._rest_s = 0.0
        self._start()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        command = [sys.executable, "-P", "-m", __spec__.name, str(self._journal.folder)]
        with contextlib.suppress(OSError):  # no process, no memory: later there may be
            self._process = subprocess.Popen(
                [*command, str(self._life)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal must not reach it
            )

    @property
    def _is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def revive(self) -> None:
        """Start another one if it has died; if that keeps dying, the less often."""
        if not self._is_alive and time.monotonic() - self._started > self._rest_s:
            self._rest_s = min(max(_FIRST_REST_S, 2 * self._rest_s), _LONGEST_REST_S)
            self._close()
            self._start()

    @property
    def trouble(self) -> str:
        """Why sending doesn't go on at present; empty if it does, or nothing is known yet."""
        of_family = (one.sent() for one in family(self._journal))
        return next((s.trouble for s in of_family if s.trouble and s.time_ms >= self._since_ms), "")

    def finish(self) -> bool:
        """Wait until all is sent, but not for a server that is away; whether it is.

        If it isn't, the process goes on by itself.
        """
        if not self._is_alive:
            self._close()
            self._start()
        self._close()
        began = time.monotonic()
        while self._process is not None and self._process.poll() is None:
            waited = time.monotonic() - began
            if waited > _HANGS_S or (waited > _GRACE_S and self.trouble):
                self._process.returncode = 0  # it outlives us, of which Popen must not warn
                return False
            time.sleep(0.05)
        return all(one.is_sent for one in family(self._journal))

    def _close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def follow(journal: Journal, life: int) -> None:
    """The process's whole life: send until standard input is closed, and then the rest."""
    ended = threading.Event()
    threading.Thread(target=_await_end, args=(journal, life, ended), daemon=True).start()
    while True:
        try:
            with journal.sending():
                _send_all(journal, ended)
                return
        except BlockingIOError:  # that of an earlier life still sends
            if ended.wait(_LOOK_S):
                return  # and sends the rest of this one as well


def _send_all(journal: Journal, ended: threading.Event) -> None:
    # Imported now only: it takes seconds, in which signals must be heeded already.
    from lotlip_platform.sender import Sender

    senders: dict[Path, Sender] = {}

    def send() -> bool:
        through = True
        for one in family(journal):  # a sweep first: its trials' runs are below its own
            if one.folder not in senders or not one.is_sent:
                try:
                    with contextlib.nullcontext() if one == journal else one.sending():
                        through &= senders.setdefault(one.folder, Sender(one)).send()
                except BlockingIOError:  # `lotlip track sync` sends it just now
                    through = False
        return through

    pause, tried_for = _LOOK_S, 0.0
    while True:
        is_last = ended.is_set()
        if send():
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


def _await_end(journal: Journal, life: int, ended: threading.Event) -> None:
    """The other end of the pipe closes when the training process ends, however it does."""
    sys.stdin.buffer.read()
    # Where the disk is full, `lotlip track sync` notes it later.
    with contextlib.suppress(OSError):
        if journal.open_life() == life:
            journal.append("end", status="KILLED", life=life)
    for trial in family(journal)[1:]:
        with contextlib.suppress(OSError):
            trial.end_killed_life()
    ended.set()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a stopping job signals everything at once
    follow(Journal(Path(sys.argv[1])), int(sys.argv[2]))
    os._exit(0)
