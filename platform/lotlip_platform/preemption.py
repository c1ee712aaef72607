"""How a run is told to stop: by a signal to its driver, or by Ray, which drains a machine of it.

A worker finishes its step, saves, and ends. Whoever signals twice doesn't wait for that.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ray._private.state import state as ray_state
from ray.exceptions import RayError

from lotlip_platform.job_environment import how_to_go_on


class Stopped(KeyboardInterrupt):
    """Training stopped as it was told to, with all saved."""

    def __init__(self, step: int, num_steps: int) -> None:
        super().__init__(
            f"stopped at step {step} of {num_steps}, saved; {how_to_go_on()} goes on from there"
        )
        self.step = step


@dataclass
class StopRequest:
    """Whether somebody wants the run to stop."""

    by: str = ""
    """SIGINT or SIGTERM, once there was one."""


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Take the first SIGINT or SIGTERM for a request; a second one raises KeyboardInterrupt."""
    request = StopRequest()

    def take(number: int, frame: FrameType | None) -> None:
        if request.by:
            raise KeyboardInterrupt
        request.by = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return
    # Not those that are ignored, or that something below Python handles.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heeded = [n for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, take) for number in heeded}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def draining_nodes() -> set[str]:
    """Ids of the machines that Ray is about to give up: spot instances called back, scale-down."""
    # Ray's public ways to know are a barrier over all workers (ray.train.get_preemption_info), or
    # need its dashboard.
    try:
        return set(ray_state.get_draining_nodes())
    except RayError:
        return set()  # a client connection, ray://, can't ask; a lost cluster is told elsewhere
