from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from lotlip_platform.batcher import Batcher


def one(asked: int) -> int:
    return 1


def test_what_comes_while_the_worker_is_busy_is_its_next_batch() -> None:
    batches: list[list[int]] = []
    free = threading.Event()

    def work(asked: Sequence[int]) -> list[int]:
        batches.append(list(asked))
        free.wait(timeout=10)
        return [10 * number for number in asked]

    async def ask() -> list[int]:
        batcher = Batcher(work, one, 3)
        first = asyncio.create_task(batcher(0))
        while not batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher(number)) for number in range(1, 6)]
        await asyncio.sleep(0.01)
        free.set()
        return list(await asyncio.gather(first, *others))

    assert asyncio.run(ask()) == [0, 10, 20, 30, 40, 50]
    assert batches == [[0], [1, 2, 3], [4, 5]]


def test_an_error_meets_all_of_its_batch_and_no_other() -> None:
    def work(asked: Sequence[int]) -> list[int]:
        if 1 in asked:
            raise ValueError("one")
        return list(asked)

    async def ask() -> list[object]:
        batcher = Batcher(work, one, 2)
        asked = [asyncio.create_task(batcher(number)) for number in (1, 2, 3, 4)]
        return list(await asyncio.gather(*asked, return_exceptions=True))

    first, second, *others = asyncio.run(ask())
    assert isinstance(first, ValueError)
    assert first is second
    assert others == [3, 4]


def test_one_who_no_longer_waits_does_not_keep_the_others_from_their_answers() -> None:
    free = threading.Event()

    def work(asked: Sequence[int]) -> list[int]:
        free.wait(timeout=10)
        return list(asked)

    async def ask() -> int:
        batcher = Batcher(work, one, 8)
        asked = [asyncio.create_task(batcher(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0.01)
        asked[1].cancel()
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await asked[1]
        return await asked[0] + await asked[2]

    assert asyncio.run(ask()) == 4


def test_a_batch_is_as_heavy_as_allowed_unless_one_alone_is_heavier() -> None:
    batches: list[list[int]] = []
    free = threading.Event()

    def work(asked: Sequence[int]) -> list[int]:
        batches.append(list(asked))
        free.wait(timeout=10)
        return list(asked)

    async def ask() -> list[int]:
        batcher = Batcher(work, lambda asked: asked, 10)
        first = asyncio.create_task(batcher(1))
        while not batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher(weight)) for weight in (5, 5, 1, 30, 2, 8)]
        await asyncio.sleep(0.01)
        free.set()
        return list(await asyncio.gather(first, *others))

    assert asyncio.run(ask()) == [1, 5, 5, 1, 30, 2, 8]
    assert batches == [[1], [5, 5], [1], [30], [2, 8]]
