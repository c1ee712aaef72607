"""Making items ahead of their use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetched(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items, made ahead of their use in a thread; its errors are raised here."""
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(message: tuple[bool, T | BaseException | None]) -> None:
        while not closed.is_set():
            try:
                ready.put(message, timeout=0.1)
                return
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                put((True, item))
                if closed.is_set():
                    return
            put((False, None))
        except BaseException as error:  # noqa: BLE001 - raised where the items are used
            put((False, error))

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if isinstance(item, BaseException):
                raise item
            if not more:
                return
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        # What nobody holds any more is closed by the garbage collector, in whatever thread that
        # happens to run; in the filling one, too, which then ends by itself.
        if thread is not threading.current_thread():
            thread.join()
