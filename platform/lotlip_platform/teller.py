"""How a worker tells its driver, and hears from it."""

from __future__ import annotations

import threading
from typing import Any

import ray


class Teller:
    """Leaves events in the driver's mailbox, from any thread."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._answer: ray.ObjectRef | None = None
        """Not yet read. Later ones don't take its place, or it would never be there in time."""
        self._told = False
        self._lock = threading.Lock()
        """Training, saving and beating threads tell."""

    def __call__(self, event: dict[str, Any]) -> None:
        with self._lock:
            answer = self._mailbox.put.remote(event)
            self._answer = self._answer or answer

    def to_stop(self) -> bool:
        """Whether the driver has said to save and stop, as far as its answers are here."""
        with self._lock:
            if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
                self._told = ray.get(self._answer)
                self._answer = None
            return self._told

    def note(self, text: str) -> None:
        self({"kind": "note", "text": text})
