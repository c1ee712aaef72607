"""How many workers fit: now, and when the cluster has grown as far as it may."""

from __future__ import annotations

import math
from collections.abc import Mapping

import ray
from ray._private.state import available_resources_per_node
from ray._private.state import state as ray_state
from ray.exceptions import RayError

from lotlip.data.order import streams_of
from lotlip.errors import ClusterError
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


def check_resources(config: ClusterConfig) -> None:
    """Raises: ClusterError if the cluster, even idle and grown as far as it may, can't hold the
    workers."""
    fewest, _ = config.fewest_and_most
    holds = capacity(config)
    if holds >= fewest:
        return
    has = ray.cluster_resources()
    worker = f"{config.cpus_per_worker:g} CPUs"
    if config.gpus_per_worker:
        worker += f" and {config.gpus_per_worker:g} GPUs"
    raise ClusterError(
        f"cluster.num_workers={config.num_workers} with {worker} each, on one machine, is more "
        f"than the cluster can hold, which is {holds:g}; it has {has.get('CPU', 0):g} CPUs and "
        f"{has.get('GPU', 0):g} GPUs: lower it, cluster.cpus_per_worker or cluster.gpus_per_worker"
    )


def capacity(config: ClusterConfig) -> float:
    """For how many workers there are machines, or may be: an autoscaler may start more."""
    now = sum(_fit_into(node["Resources"], config) for node in ray.nodes() if node["Alive"])
    try:
        groups = ray_state.get_cluster_config()
    except RayError:
        groups = None  # a client connection, ray://, can't ask
    if groups is None:
        return now
    grown = 0.0
    for group in groups.node_group_configs:
        most = math.inf if group.max_count < 0 else group.max_count
        fits = _fit_into(group.resources, config)
        grown += most * fits if fits else 0
    return max(now, grown)


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
