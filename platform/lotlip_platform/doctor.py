"""What works on this machine, what doesn't and what to do about it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from lotlip_platform import doctor_machine, doctor_services
from lotlip_platform.finding import Finding, looked, masked, render

__all__ = ["Finding", "examine", "examine_cluster", "render"]

NETWORK_LIMIT_S = 15.0
CLUSTER_LIMIT_S = 300.0


def examine(store_uri: str = "") -> list[Finding]:
    """Look at everything; never raises for what it finds.

    Args:
        store_uri: a store to write a small object to, which is removed again; empty writes nothing.
    """
    patients = [_Look(name, look) for name, look in doctor_services.checks(store_uri).items()]
    machine = [look() for look in doctor_machine.checks()]
    deadline = time.monotonic() + NETWORK_LIMIT_S
    network = [patient.finding(deadline - time.monotonic()) for patient in patients]
    return [masked(finding) for finding in [*machine, *network]]


def examine_cluster(address: str, store_uri: str) -> list[Finding]:
    """Look at a Ray cluster: its dashboard, and from inside a machine of each kind.

    Args:
        address: http://HOST:8265.
        store_uri: a store that the cluster is to write 32 MiB to and read them; empty: none.

    Raises: ClusterError, ConfigError if the cluster can't be asked.
    """
    from lotlip_platform.job_cluster import JobCluster
    from lotlip_platform.job_package import make_package
    from lotlip_platform.job_preflight import ask, ray_version

    cluster, package = JobCluster(address), make_package()
    package.check_size()
    request = {"store": store_uri}
    found = ask(cluster, "cluster_doctor", request, package.content, {}, CLUSTER_LIMIT_S)
    return [ray_version(cluster.ray_version), *found]


class _Look:
    """A check that may hang, in a thread that nobody waits for at the end."""

    def __init__(self, name: str, look: Callable[[], Finding]) -> None:
        self.name, self._look = name, look
        self._finding: Finding | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finding(self, timeout_s: float) -> Finding:
        self._thread.join(max(0.0, timeout_s))
        if self._finding is not None:
            return self._finding
        found = f"no answer within {NETWORK_LIMIT_S:g} s" if self._thread.is_alive() else "failed"
        return Finding(self.name, "error", found, "check the network, the address and its name")

    def _run(self) -> None:
        self._finding = looked(self.name, self._look)
