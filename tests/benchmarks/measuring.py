"""How a claim is measured: both sides in one run, in turns, and memory in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
Work = Callable[[], object]

DEVICE = torch.device(os.environ.get("BENCH_DEVICE", "cpu"))
"""Where texts and losses are computed; in the environment, so that new processes know it, too."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One claim."""

    what: str
    yardstick: str
    ours_s: float
    """See `clock`."""
    theirs_s: float
    ours_mib: float = 0.0
    """The most memory it took, see `peak_mib`; 0 if not measured."""
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


def clock() -> float:
    """CPU seconds of the process; with a GPU, seconds that pass until it has done its work."""
    if DEVICE.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(DEVICE)
    return time.perf_counter()


def medians(*competitors: Work, repeats: int = 5) -> list[float]:
    """Seconds of each by the `clock`, the median of repeats in which they take turns."""
    times: list[list[float]] = [[] for _ in competitors]
    turns = list(zip(competitors, times, strict=True))
    for _ in range(repeats):
        turns.reverse()  # a machine that becomes slower or faster favours nobody
        for run, taken in turns:
            began = clock()
            run()
            taken.append(clock() - began)
    return [statistics.median(taken) for taken in times]


def peak_mib(prepare: Callable[..., Work], *arguments: object, whole: bool = False) -> float:
    """How much memory the work takes that `prepare(*arguments)` gives, in a new process.

    Beyond what was there before, or that of the `whole` process; of the GPU's memory if on one.
    """
    return in_new_process(_peak_mib, prepare, arguments, whole)


def in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """What a function returns in a process that has done nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_on_one_thread, function, arguments).result()


def _on_one_thread(function: Callable[..., T], arguments: tuple[object, ...]) -> T:
    torch.set_num_threads(1)
    return function(*arguments)


def _peak_mib(prepare: Callable[..., Work], arguments: tuple[object, ...], whole: bool) -> float:
    work = prepare(*arguments)
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated(DEVICE)
        torch.cuda.reset_peak_memory_stats(DEVICE)
        work()
        return (torch.cuda.max_memory_allocated(DEVICE) - before) / 2**20
    # Not getrusage's peak: a new process begins with that of the one that started it.
    Path("/proc/self/clear_refs").write_text("5")
    before = 0 if whole else resident_kib()
    work()
    return (resident_kib("VmHWM") - before) / 1024


def resident_kib(name: str = "VmRSS") -> int:
    """Memory of this process, now (VmRSS) or at its peak since that was reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
