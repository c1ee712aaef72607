"""What the driver knows of the workers of one life: where they are, and whether they live."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayError

from lotlip_platform.cluster import ClusterConfig, on_node
from lotlip_platform.mailbox import Event

_SILENCE_S = 20.0
"""After which a worker that gives no sign of life is taken for frozen."""
_WAIT_S = 1800.0
"""How long anything else than a step may take; data and store have limits of their own."""
_BLIND_S = 5.0
"""Between two looks, after which nothing is known of what the workers did meanwhile."""
_KILL_S = 10.0
_SLOW_SHARE = 0.25
"""Of the time of a step for which a straggler keeps the others waiting."""
_SLOW_FOR_S = 60.0


@dataclass
class _Worker:
    node: str
    host: str
    pid: int
    heard: float
    """When there was a sign of life."""
    moved: float
    """When it last went on to something else."""
    beat: Event = field(default_factory=dict)
    own_share: float = 0.0
    """Of the time of its last steps, that before it needed the others, see `Pulse.stepped`."""

    @property
    def is_at_step(self) -> bool:
        return self.beat.get("at") == "step"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Workers:
    """The workers of one life."""

    def __init__(self, limits: ClusterConfig, now: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._now = limits, now
        self._workers: dict[int, _Worker] = {}
        self.nodes: set[str] = set()
        """Ids of the machines they are on."""
        self._slow_since: dict[int, float] = {}
        self._looked = now()

    def take(self, event: Event) -> None:
        """An event of kind `born`, `beat` or `ended`."""
        now = self._now()
        if event["kind"] == "born":
            self.nodes.add(event["node"])
            where = event["node"], event["host"], event["pid"]
            self._workers[event["rank"]] = _Worker(*where, heard=now, moved=now)
        elif event["kind"] == "ended":
            self._workers.pop(event["rank"], None)
        elif worker := self._workers.get(event["rank"]):
            before = worker.beat or {"own_s": 0.0, "step_s": 0.0}
            if event["step_s"] > before["step_s"]:
                own_s, step_s = (event[name] - before[name] for name in ("own_s", "step_s"))
                worker.own_share = own_s / step_s
            if event["moves"] != worker.beat.get("moves"):
                worker.moved = now
            worker.beat, worker.heard = event, now

    def hung(self) -> str:
        """Why the workers must be killed; empty as long as they live."""
        now = self._now()
        blind_s, self._looked = now - self._looked, now
        if blind_s > _BLIND_S:  # this process, perhaps all of the machine, stood still meanwhile
            for worker in self._workers.values():
                worker.heard += blind_s
                worker.moved += blind_s
        for rank, worker in self._workers.items():
            if now - worker.heard > _SILENCE_S:
                return f"worker {rank} ({worker}) gives no sign of life for {_SILENCE_S:.0f} s"
        if not self._workers:
            return ""
        still_s = now - max(worker.moved for worker in self._workers.values())
        # A worker that waits for data, or for the store, keeps the others at their step.
        at_step = all(worker.is_at_step for worker in self._workers.values())
        limit_s = self._limits.max_step_s if at_step else _WAIT_S
        if not limit_s or still_s <= limit_s:
            return ""
        stands = "; ".join(
            f"worker {rank} ({worker}) is at {worker.beat.get('where')}"
            for rank, worker in sorted(self._workers.items())
        )
        limit = f"cluster.max_step_s={limit_s:g}" if at_step else f"the {limit_s:.0f} s allowed"
        return f"no worker has moved for {still_s:.0f} s, more than {limit}: {stands}"

    def too_large(self) -> str:
        """Which worker needs more memory than it may; empty if none does."""
        limit = self._limits.max_memory_gb * 1e9
        for rank, worker in self._workers.items():
            if limit and worker.beat.get("memory_bytes", 0) > limit:
                return (
                    f"worker {rank} ({worker}) uses {worker.beat['memory_bytes'] / 1e9:.1f} GB of "
                    f"memory, more than cluster.max_memory_gb={self._limits.max_memory_gb:g}"
                )
        return ""

    def straggler(self) -> str:
        """A worker that has kept the others waiting for a while; empty if none has."""
        now = self._now()
        for rank, worker in self._workers.items():
            others = [other.own_share for r, other in self._workers.items() if r != rank]
            late = worker.own_share - statistics.median(others) if others else 0.0
            if late < _SLOW_SHARE:
                self._slow_since.pop(rank, None)
            elif now - self._slow_since.setdefault(rank, now) > _SLOW_FOR_S:
                return (
                    f"worker {rank} ({worker}) keeps the others waiting for "
                    f"{late:.0%} of the time: is that machine busy, or slow?"
                )
        return ""

    def kill(self) -> None:
        """End the processes, frozen ones too, which Ray itself would wait for."""
        kills = []
        for worker in self._workers.values():
            there = on_node(worker.node)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_kill)
            kills.append(task.remote(worker.pid))
        with contextlib.suppress(RayError):  # a machine that is gone has no processes
            ray.wait(kills, num_returns=len(kills), timeout=_KILL_S)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
