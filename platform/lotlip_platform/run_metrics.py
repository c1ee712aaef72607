"""What Prometheus is told of training, through Ray, by the driver: workers are left alone.

infra/monitoring/grafana has dashboards of them. All have the tag `run`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from ray.util.metrics import Counter, Gauge, Histogram

from lotlip_platform.mailbox import Event

_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300]


class RunMetrics:
    """Those of one run, over all lives of its workers."""

    def __init__(self, run: str, now: Callable[[], float] = time.monotonic) -> None:
        self._tags = {"run": run}
        self._now = now
        self._began = now()
        self._trained_s = 0.0
        """Spent on steps that are kept: what is trained again after a failure doesn't count."""
        self._step = 0
        """The last that is counted."""

    def take(self, event: Event) -> None:
        """An event of `listener`."""
        kind = event["kind"]
        if kind == "metrics":
            for name, value in event["values"].items():
                _gauge(metric_name(name)).set(value, self._tags)
            if "train/step_s" in event["values"]:
                self._count(event["step"], event["values"]["train/step_s"])
        elif kind == "saved":
            _checkpoints().observe(event["seconds"], self._tags)
        elif kind == "faults":
            _faults().inc(event["count"], self._tags)
        elif kind == "bad":
            _bad_samples().inc(len(event["samples"]), self._tags)
        elif kind == "born":
            _workers().inc(1, self._tags)

    def _count(self, step: int, step_s: float) -> None:
        if self._step == 0:  # resumed, or the first log: steps before it are not this driver's
            self._step = step
            return
        self._trained_s += max(0, step - self._step) * step_s
        self._step = max(self._step, step)
        goodput = self._trained_s / max(self._now() - self._began, 1e-9)
        _gauge("lotlip_train_goodput").set(min(goodput, 1.0), self._tags)


def metric_name(name: str) -> str:
    """`train/samples_per_s` is `lotlip_train_samples_per_s`."""
    return f"lotlip_{name.replace('/', '_')}"


# Ray wants each metric made once in a process.


@functools.cache
def _gauge(name: str) -> Gauge:
    return Gauge(name, "As MLflow has it, see docs/training.md", tag_keys=("run",))


@functools.cache
def _checkpoints() -> Histogram:
    return Histogram(
        "lotlip_checkpoint_seconds",
        "From the step that is saved to its commit",
        boundaries=_SECONDS,
        tag_keys=("run",),
    )


@functools.cache
def _faults() -> Counter:
    return Counter(
        "lotlip_store_faults", "Calls of the store that failed and were made again", ("run",)
    )


@functools.cache
def _bad_samples() -> Counter:
    return Counter("lotlip_bad_samples", "Samples that could not be used", ("run",))


@functools.cache
def _workers() -> Counter:
    return Counter("lotlip_workers_started", "Workers, those started again included", ("run",))
