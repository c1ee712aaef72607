"""How a claim is measured: both sides in one run, in turns, and memory in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One claim."""

    what: str
    yardstick: str
    ours_s: float
    """CPU seconds."""
    theirs_s: float
    ours_mib: float = 0.0
    """The most memory it took beyond what was there before; 0 if not measured."""
    theirs_mib: float = 0.0
    goal: str = ""


def compared(
    work: Callable[..., Work],
    *arguments: object,
    what: str,
    yardstick: str,
    goal: str,
    tolerance: float,
    with_memory: bool = True,
    repeats: int = 3,
) -> Row:
    """`work("ours", *arguments)` against `work("theirs", *arguments)`, which must agree."""
    ours, theirs = (work(side, *arguments) for side in ("ours", "theirs"))
    np.testing.assert_allclose(ours(), theirs(), atol=tolerance, rtol=0)  # type: ignore[arg-type]
    ours_s, theirs_s = medians(ours, theirs, repeats=repeats)
    ours_mib, theirs_mib = (
        peak_mib(work, side, *arguments) if with_memory else 0.0 for side in ("ours", "theirs")
    )
    return Row(
        what=what,
        yardstick=yardstick,
        ours_s=ours_s,
        theirs_s=theirs_s,
        ours_mib=ours_mib,
        theirs_mib=theirs_mib,
        goal=goal,
    )


def medians(*competitors: Work, repeats: int = 5) -> list[float]:
    """CPU seconds of each, the median of repeats in which they take turns."""
    times: list[list[float]] = [[] for _ in competitors]
    for _ in range(repeats):
        for run, taken in zip(competitors, times, strict=True):
            began = time.process_time()
            run()
            taken.append(time.process_time() - began)
    return [statistics.median(taken) for taken in times]


def peak_mib(prepare: Callable[..., Work], *arguments: object) -> float:
    """How much memory the work takes that `prepare(*arguments)` gives, in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_growth_mib, prepare, arguments).result()


def _growth_mib(prepare: Callable[..., Work], arguments: tuple[object, ...]) -> float:
    torch.set_num_threads(1)
    work = prepare(*arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
