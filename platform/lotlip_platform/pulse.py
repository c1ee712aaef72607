"""A worker's signs of life: what it is at, told by a thread beside training."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

BEAT_S = 2.0
_MEASURE_EVERY = 5  # beats; a look at all processes of a machine takes milliseconds
_INNERMOST = 3  # frames told


class Pulse:
    """What a worker is at. Its thread tells it even while the worker itself is stuck."""

    def __init__(self, send: Callable[[dict[str, Any]], None], rank: int) -> None:
        self._send, self._rank = send, rank
        self._worker = threading.get_ident()
        self._at, self._moves, self._own_s, self._step_s = "start", 0, 0.0, 0.0
        self._ended = threading.Event()

    def at(self, what: str) -> None:
        """The worker goes on to something else."""
        self._at = what
        self._moves += 1

    def stepped(self, own_s: float, step_s: float) -> None:
        """A step is done: how long it took, and how long until the other workers were needed."""
        self._own_s += own_s
        self._step_s += step_s

    @contextmanager
    def told(self) -> Iterator[Pulse]:
        """Told as long as the block runs."""
        thread = threading.Thread(target=self._tell, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def _tell(self) -> None:
        number, memory_bytes = 0, 0
        while not self._ended.wait(BEAT_S):
            if number % _MEASURE_EVERY == 0:
                memory_bytes = _memory_bytes()
            number += 1
            self._send(
                {
                    "kind": "beat",
                    "rank": self._rank,
                    "at": self._at,
                    "moves": self._moves,
                    "own_s": self._own_s,
                    "step_s": self._step_s,
                    "memory_bytes": memory_bytes,
                    "where": self._where(),
                }
            )

    def _where(self) -> str:
        frame = sys._current_frames().get(self._worker)
        if frame is None:
            return ""
        frames = traceback.extract_stack(frame)
        ours = [f for f in frames if "lotlip" in f.filename]
        shown = [*ours[-_INNERMOST:], *frames[-1:]]
        places = [f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in shown]
        return " > ".join(dict.fromkeys(places))


def _memory_bytes() -> int:
    """Of this process and those below it."""
    total = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.Error:  # has just ended
            continue
    return total
