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

    def __init__(
        self,
        work: Callable[[Sequence[Asked]], Sequence[Answered]],
        weigh: Callable[[Asked], int],
        most: int,
    ) -> None:
        """A batch weighs `most` at most, unless a single request weighs more."""
        self._work, self._weigh, self._most = work, weigh, most
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
            if not (batch := self._next()):
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

    def _next(self) -> list[tuple[Asked, asyncio.Future[Answered]]]:
        batch, left = [], self._most
        while self._waiting and (not batch or self._weigh(self._waiting[0][0]) <= left):
            asked, future = self._waiting.popleft()
            if not future.done():  # else its client has gone
                batch.append((asked, future))
                left -= self._weigh(asked)
        return batch
