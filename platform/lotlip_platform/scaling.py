"""How many workers fit: now, and in a cluster that is idle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import ray
from ray._private.state import available_resources_per_node
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
    """Raises: ClusterError if the cluster, even idle, can't hold the workers, and does not grow."""
    lack = what_lacks(config)
    if lack and not may_grow():
        raise ClusterError(f"{lack}: lower it, cluster.cpus_per_worker or cluster.gpus_per_worker")


def what_lacks(config: ClusterConfig) -> str:
    """Why the machines that there are can't hold the workers; empty if they can."""
    fewest, _ = config.fewest_and_most
    holds = sum(_fit_into(node["Resources"], config) for node in ray.nodes() if node["Alive"])
    if holds >= fewest:
        return ""
    has = ray.cluster_resources()
    worker = f"{config.cpus_per_worker:g} CPUs"
    if config.gpus_per_worker:
        worker += f" and {config.gpus_per_worker:g} GPUs"
    return (
        f"cluster.num_workers={config.num_workers} with {worker} each, on one machine, is more "
        f"than the cluster can hold, which is {holds}; it has {has.get('CPU', 0):g} CPUs and "
        f"{has.get('GPU', 0):g} GPUs"
    )


def may_grow() -> bool:
    """Whether an autoscaler runs; asked on the head, where drivers of jobs are.

    How far it may go Ray does not tell. `ray up` leaves the file; KubeRay, whose autoscaler is a
    container beside the head's, has that start without one of its own.
    """
    by_kuberay = "--no-monitor" in os.environ.get("KUBERAY_GEN_RAY_START_CMD", "")
    return by_kuberay or Path("~/ray_bootstrap_config.yaml").expanduser().exists()


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
