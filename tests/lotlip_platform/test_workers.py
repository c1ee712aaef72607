"""What is taken for a hang, a straggler or too much memory, on a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest

from lotlip.errors import ConfigError
from lotlip_platform.cluster import ClusterConfig
from lotlip_platform.workers import Workers


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Life:
    """Workers that beat every two seconds."""

    def __init__(self, num_workers: int = 2, **limits: Any) -> None:
        self.clock = Clock()
        self.workers = Workers(ClusterConfig(**limits), now=self.clock)
        self.told: dict[int, dict[str, Any]] = {}
        for rank in range(num_workers):
            born = {
                "kind": "born",
                "rank": rank,
                "node": f"n{rank}",
                "host": "h",
                "pid": 100 + rank,
            }
            self.workers.take(born)
            self.told[rank] = {"moves": 0, "own_s": 0.0, "step_s": 0.0}

    def beat(
        self, rank: int, at: str = "step", *, own_s: float = 0.5, step_s: float = 1.0, **told: Any
    ) -> None:
        has = self.told[rank]
        has["moves"] += told.pop("moved", True)
        has["own_s"] += own_s
        has["step_s"] += step_s
        event = {"kind": "beat", "rank": rank, "at": at, "where": "loop.py:1 step", **has, **told}
        self.workers.take(event)

    def run(self, seconds: float, **beats: Any) -> None:
        """All workers that are named, as w0={...}, beat for a while."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += 2
            for name, told in beats.items():
                self.beat(int(name[1:]), **told)
            self.workers.hung()  # as the driver asks all the while


def test_workers_that_train_are_left_alone():
    life = Life()
    life.run(600, w0={}, w1={})
    assert life.workers.hung() == ""
    assert life.workers.straggler() == ""
    assert life.workers.too_large() == ""
    assert life.workers.nodes == {"n0", "n1"}


def test_a_frozen_worker_is_noticed_after_twenty_seconds():
    life = Life()
    life.run(10, w0={}, w1={})
    life.run(20, w0={"moved": False})
    assert life.workers.hung() == ""
    life.run(2, w0={"moved": False})
    assert life.workers.hung() == "worker 1 (process 101 on h) gives no sign of life for 20 s"


def test_a_step_that_does_not_end_is_a_hang_and_tells_where_each_worker_is():
    life = Life(max_step_s=30.0)
    life.run(10, w0={}, w1={})
    stuck = {"moved": False}
    life.run(30, w0=stuck, w1=stuck)
    assert life.workers.hung() == ""
    life.run(2, w0=stuck, w1={**stuck, "where": "loop.py:7 lost"})
    hung = life.workers.hung()
    allowed = "no worker has moved for 32 s, more than cluster.max_step_s=30: "
    assert hung.startswith(f"{allowed}worker 0 (process 100 on h) is at loop.py")
    assert hung.endswith("worker 1 (process 101 on h) is at loop.py:7 lost")


@pytest.mark.parametrize("at", ["data", "save", "evaluation"])
def test_a_worker_that_waits_for_something_else_keeps_the_others_at_their_step(at: str):
    life = Life()
    stuck = {"moved": False}
    life.run(1780, w0=stuck, w1={"at": at, **stuck})
    assert life.workers.hung() == ""
    life.run(30, w0=stuck, w1={"at": at, **stuck})
    assert life.workers.hung().startswith("no worker has moved for 18")


def test_a_step_may_take_as_long_as_it_likes_without_a_limit():
    life = Life(max_step_s=0.0)
    life.run(6000, w0={"moved": False}, w1={"moved": False})
    assert life.workers.hung() == ""


def test_a_worker_that_has_ended_is_not_missed():
    life = Life()
    life.workers.take({"kind": "ended", "rank": 1})
    life.run(60, w0={})
    assert life.workers.hung() == ""


def test_a_straggler_is_named_once_it_has_been_slow_for_a_minute():
    life = Life(3)
    slow = {"own_s": 0.9}
    life.run(60, w0={}, w1=slow, w2={})
    assert life.workers.straggler() == ""
    for _ in range(32):
        life.run(2, w0={}, w1=slow, w2={})
        told = life.workers.straggler()
    expected = "worker 1 (process 101 on h) keeps the others waiting for 40% of the time"
    assert told.startswith(expected)
    life.run(2, w0={}, w1={}, w2={})
    assert life.workers.straggler() == ""


def test_a_straggler_is_named_even_where_steps_are_longer_than_beats():
    life = Life()
    told = ""
    for _ in range(40):
        for steps in (0, 0, 1):
            life.clock.now += 2
            life.beat(0, own_s=1.0 * steps, step_s=5.0 * steps)
            life.beat(1, own_s=4.5 * steps, step_s=5.0 * steps)
        told = life.workers.straggler()
    assert told.startswith("worker 1 (process 101 on h) keeps the others waiting for 70%")


def test_after_a_pause_of_the_whole_machine_workers_get_time_to_beat():
    life = Life()
    life.run(10, w0={}, w1={})
    life.clock.now += 3600
    assert life.workers.hung() == ""
    life.run(24, w0={})
    assert life.workers.hung().startswith("worker 1 (process 101 on h) gives no sign of life")


def test_too_much_memory_is_told_with_the_key_that_limits_it():
    life = Life(max_memory_gb=2.0)
    life.run(2, w0={"memory_bytes": 1_900_000_000}, w1={"memory_bytes": 2_100_000_000})
    assert life.workers.too_large() == (
        "worker 1 (process 101 on h) uses 2.1 GB of memory, more than cluster.max_memory_gb=2"
    )


@pytest.mark.parametrize("name", ["max_step_s", "max_memory_gb"])
def test_limits_below_zero_are_refused(name: str):
    with pytest.raises(ConfigError, match=rf"cluster\.{name}=-1 must be 0 or more"):
        ClusterConfig(**{name: -1})  # type: ignore[arg-type]
