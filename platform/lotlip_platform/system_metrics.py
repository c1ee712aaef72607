"""How busy the machine of a worker is, under the names that MLflow gives these metrics."""

from __future__ import annotations

import contextlib
import time

import psutil
import torch


class Machine:
    """Measures since the last time. Differences are from when it was made."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first call has nothing to compare with
        self._received, self._at = _received(), time.monotonic()

    def measure(self) -> dict[str, float]:
        """Metrics by name: per cent, MB, MB/s."""
        received, now = _received(), time.monotonic()
        seconds = max(now - self._at, 1e-3)
        speed = (received - self._received) / 1e6 / seconds
        self._received, self._at = received, now
        return {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
            "system/worker_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
            "system/network_receive_megabytes_per_s": speed,
            **_gpu(),
        }


def _received() -> int:
    counters = psutil.net_io_counters()
    return counters.bytes_recv if counters else 0


def _gpu() -> dict[str, float]:
    if not torch.cuda.is_available():
        return {}
    measured = {}
    with contextlib.suppress(Exception):  # a container may not let the driver's library be asked
        free, total = torch.cuda.mem_get_info()
        measured["system/gpu_0_memory_usage_percentage"] = 100 * (1 - free / total)
        measured["system/gpu_0_peak_memory_megabytes"] = torch.cuda.max_memory_allocated() / 1e6
        measured["system/gpu_0_utilization_percentage"] = float(torch.cuda.utilization())
    return measured
