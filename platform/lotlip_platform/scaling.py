"""How many workers a life of a run has: of the numbers that its config allows, as many as fit."""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError

from lotlip.data.order import streams_of
from lotlip_platform.cluster import ClusterConfig
from lotlip_platform.preemption import draining_nodes


def worker_counts(config: ClusterConfig, num_streams: int) -> list[int]:
    """The numbers of workers a run may have, the smallest first.

    Raises: ConfigError if the order of the samples, with so many streams, allows none of them.
    """
    fewest, most = config.fewest_and_most
    counts = [count for count in range(fewest, most + 1) if num_streams % count == 0]
    if not counts:
        streams_of(0, most, num_streams)  # tells those that work
    return counts


def room(config: ClusterConfig) -> int:
    """For how many more workers the cluster has free resources, machine by machine."""
    try:
        free = available_resources_per_node()
    except RayError:
        free = {"": ray.available_resources()}  # a client connection, ray://, can't ask
    drained = draining_nodes()
    return sum(_fit_into(has, config) for node, has in free.items() if node not in drained)


def _fit_into(has: Mapping[str, float], config: ClusterConfig) -> int:
    by_cpu = int(has.get("CPU", 0.0) / config.cpus_per_worker)
    if not config.gpus_per_worker:
        return by_cpu
    return min(by_cpu, int(has.get("GPU", 0.0) / config.gpus_per_worker))


def most_that_fit(counts: list[int], num_free: int) -> int:
    """The largest of `counts` that is at most `num_free`; 0 if there is none."""
    return max((count for count in counts if count <= num_free), default=0)
