"""Requests that wait for the same worker, handed to it together.

Ray Serve closes its batches by the clock: the first request waits for others even where there are
none, and where there are many the batch is closed before the worker is free. Here nobody waits for
company: what comes while the worker is busy is its next batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class Batcher(Generic[Asked, Answered]):
    """Calls `work` with one batch after the other, in a thread of its own."""

    def __init__(self, work: Callable[[Sequence[Asked]], Sequence[Answered]], most: int) -> None:
        """`most` is the size of the largest batch."""
        self._work, self._most = work, most
        self._waiting: deque[tuple[Asked, asyncio.Future[Answered]]] = deque()
        self._thread = ThreadPoolExecutor(1, "batches")
        self._working: asyncio.Task[None] | None = None

    async def __call__(self, asked: Asked) -> Answered:
        """Its answer. Raises: what `work` raises, to all of a batch."""
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work_off())
        return await future

    async def _work_off(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = []
            while self._waiting and len(batch) < self._most:
                one = self._waiting.popleft()
                if not one[1].done():  # or its client has gone
                    batch.append(one)
            if not batch:
                return
            asked = [one for one, _ in batch]
            try:
                answers = await loop.run_in_executor(self._thread, self._work, asked)
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():  # its client may have gone
                        future.set_result(answer)
            except Exception as error:  # noqa: BLE001 (raised where the answers are awaited)
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
