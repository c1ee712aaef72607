"""Where the workers of a run leave what they tell, until the driver reads it.

A module of its own, since the actor's process imports all of it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

Event = dict[str, Any]
"""Of the kinds that `listener` lists."""


class Mailbox:
    """An actor that holds what the workers have told and the driver not yet read."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._to_stop = False
        self._begun: Counter[str] = Counter()

    def put(self, event: Event) -> bool:
        """Leave an event; whether the workers are to save and stop."""
        self._events.append(event)
        return self._to_stop

    def begin(self, work: str) -> int:
        """Note that a piece of work is begun; how often it was so far."""
        self._begun[work] += 1
        return self._begun[work]

    def tell_to_stop(self, to_stop: bool) -> None:
        self._to_stop = to_stop

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events
