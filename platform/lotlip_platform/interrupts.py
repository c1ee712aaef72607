"""Ctrl-C that is heeded even where Python drops it.

An exception that a signal raises while a destructor or a callback of a weak reference runs is
printed, and the program goes on. So it is remembered, and raised again at the next progress.
"""

from __future__ import annotations

import signal
import threading

_came = threading.Event()


def raise_interrupts() -> None:
    """SIGINT raises KeyboardInterrupt, unless it is ignored, as shells have it for commands in the
    background; so does SIGTERM, by which batch systems stop a job."""
    _came.clear()
    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


def heed_interrupts() -> None:
    """Raises: KeyboardInterrupt if there was one that nobody heeded."""
    if _came.is_set():
        raise KeyboardInterrupt


def _interrupt(signal_number: int, frame: object) -> None:
    _came.set()
    raise KeyboardInterrupt
