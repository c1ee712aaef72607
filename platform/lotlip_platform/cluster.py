"""The Ray cluster: the one whose address is given, else one of this process' own."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lotlip.errors import ClusterError, ConfigError
from lotlip_platform.ray_address import check_answers

# Without PASSIVE torch's threads spin while they wait and, on a busy machine, slow each other down
# many times over.
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a training run asks of the cluster."""

    num_workers: int | tuple[int, ...] = 1
    """Training processes; or the fewest and the most, as in [2, 8]: then it is as many as there
    is room for, which changes as machines come and go. What is learnt stays the same."""
    cpus_per_worker: float = 1.0
    """CPUs reserved for each, loader processes included."""
    gpus_per_worker: float = 0.0
    """1 trains on GPUs; 0 on the CPU, even where there are GPUs."""
    max_failures: int = 2
    """Restarts from the last checkpoint after a worker died; errors in config or data are never
    retried."""
    max_step_s: float = 45.0
    """A step that all workers are at for longer is taken for a hang: they are killed, and start
    again from the last checkpoint. 0: a step may take as long as it likes."""
    max_memory_gb: float = 0.0
    """Of a worker with its loader processes; above it the run saves, and its workers are started
    again. 0: no limit but Ray's own, which kills workers on a machine that is 95% full."""

    def __post_init__(self) -> None:
        workers = self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers,)
        if len(workers) not in (1, 2) or not 1 <= workers[0] <= workers[-1]:
            raise ConfigError(
                f"cluster.num_workers={self.num_workers} must be 1 or more, or the fewest and the "
                "most, as in [2, 8]"
            )
        if self.max_failures < 0:
            raise ConfigError(f"cluster.max_failures={self.max_failures} must be 0 or more")
        for name in ("max_step_s", "max_memory_gb"):
            if getattr(self, name) < 0:
                raise ConfigError(f"cluster.{name}={getattr(self, name)} must be 0 or more")
        if self.cpus_per_worker <= 0 or self.gpus_per_worker < 0:
            raise ConfigError(
                f"cluster.cpus_per_worker={self.cpus_per_worker} must be above 0, "
                f"cluster.gpus_per_worker={self.gpus_per_worker} 0 or more"
            )

    @property
    def fewest_and_most(self) -> tuple[int, int]:
        """Workers."""
        if isinstance(self.num_workers, tuple):
            return self.num_workers[0], self.num_workers[-1]
        return self.num_workers, self.num_workers


@contextmanager
def connected() -> Iterator[None]:
    """A connection to Ray, ended with the block: nothing of ours runs on afterwards.

    The address is taken from RAY_ADDRESS; without it a local Ray is started. A connection that
    exists already is used and left open. Raises: ClusterError.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    check_answers(address or "")
    on_term = signal.getsignal(signal.SIGTERM)
    local: dict[str, Any] = {"num_cpus": max(2, os.cpu_count() or 1), "include_dashboard": False}
    try:
        ray.init(
            address=address or "local",  # or it would take any Ray that runs on this machine
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
            **({} if address else local),
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(
            f"cannot connect to Ray at {address or 'this machine'}: {reason}; start it, or unset "
            "RAY_ADDRESS to use one of your own"
        ) from error
    # Ray puts its own in place, which aborts; ours ends runs in order.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)
    try:
        yield
    finally:
        ray.shutdown()


def beside_driver() -> Any:
    """For what the driver can't do without: where it lives, no other machine can take it away."""
    return on_node(ray.get_runtime_context().get_node_id())


def on_node(node: str) -> Any:  # Ray's annotations know other strategies only
    """For what is to run on this machine.

    Never "soft", which Ray does not heed for actors without CPUs: it puts them anywhere.
    """
    return NodeAffinitySchedulingStrategy(node, soft=False)


def store_environment() -> dict[str, str]:
    """How this process reaches the store; workers put it into their own environment.

    It travels as an argument of theirs, not in Ray's runtime environment, which dashboards show.
    """
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
