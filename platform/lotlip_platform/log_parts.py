"""A log that grows in a store, whose objects can't be appended to: in parts, one after another.

Only the last part is written again as it grows, so neither what is written nor the number of
objects gets out of hand. A source is who writes: `driver`, `rank-0003`. Each process that writes a
source has parts of its own, which follow those of the process before it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

from lotlip.data.store import Store
from lotlip.errors import LotlipError

PART_BYTES = 32 * 1024
FLUSH_S = 2.0
"""Of a log that somebody follows."""
_MOST_PARTS_WAITING = 256
"""That a store which is away may leave in memory; then the oldest is dropped, and told so."""


class LogWriter:
    """Writes one source's log; what the store doesn't take now, it gets later."""

    def __init__(self, store: Store, source: str, flush_s: float = FLUSH_S) -> None:
        self._store, self._flush_s = store, flush_s
        self._stem = f"{source}/{time.time_ns():020d}-{os.getpid()}"
        self._parts: dict[int, bytearray] = {0: bytearray()}
        """The last one, and those before it that are not wholly written."""
        self._written: dict[int, int] = {}
        """Bytes that the store has of each."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_flushing, daemon=True)
        self._thread.start()

    def write(self, content: bytes) -> None:
        with self._lock:
            last = max(self._parts)
            self._parts[last] += content
            if len(self._parts[last]) >= PART_BYTES:
                self._parts[last + 1] = bytearray()
            if len(self._parts) > _MOST_PARTS_WAITING:
                lost = self._parts.pop(min(self._parts))
                self._parts[min(self._parts)][:0] = b"[%d bytes lost]\n" % len(lost)

    def close(self, patience_s: float = 0.0) -> None:
        """Write what is left; a store that is away is asked for so long."""
        self._ended.set()
        self._thread.join()
        deadline = time.monotonic() + patience_s
        while not self._flush() and time.monotonic() < deadline:
            time.sleep(self._flush_s)

    def _keep_flushing(self) -> None:
        while not self._ended.wait(self._flush_s):
            self._flush()

    def _flush(self) -> bool:
        """Whether the store has taken all."""
        with self._lock:
            waiting = {number: bytes(part) for number, part in self._parts.items()}
        try:
            for number, content in sorted(waiting.items()):
                if len(content) > self._written.get(number, 0):
                    self._store.write(f"{self._stem}-{number:06d}.log", content)
                    self._written[number] = len(content)
                if number < max(waiting):  # nothing is added to it
                    with self._lock:
                        self._parts.pop(number, None)
        except LotlipError:
            return False
        return True


class LogReader:
    """Reads one source's log from where it stands."""

    def __init__(self, store: Store, source: str) -> None:
        self._store, self._source = store, source
        self._at: dict[str, int] = {}
        """Bytes read, by part."""
        self._left = b""
        """Of a line that has no end yet."""

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing so far."""
        return not self._at

    def lines(self, *, is_over: bool = False) -> Iterator[str]:
        """What came since the last call, in whole lines; when it is over, the last one too."""
        for name, version in self._store.versions(f"{self._source}/").items():
            start = self._at.get(name, 0)
            if version.num_bytes > start:
                with self._store.open(name, start=start) as file:
                    content = file.read()
                self._at[name] = start + len(content)
                *whole, self._left = (self._left + content).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
        if is_over and self._left:
            yield self._left.decode(errors="replace")
            self._left = b""


def sources(store: Store) -> list[str]:
    """Who has written."""
    return sorted({name.partition("/")[0] for name in store.list()})
