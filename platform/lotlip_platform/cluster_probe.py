"""What a cluster says of a job before it is submitted, asked on its head.

    python -m lotlip_platform.cluster_probe REQUEST

REQUEST is JSON; the answer is a line of it, which `job_preflight` finds among what Ray prints.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lotlip.configuration import from_dict
from lotlip.data.manifest import read_manifest
from lotlip_platform import doctor_machine, doctor_services
from lotlip_platform.cluster import ClusterConfig, connected
from lotlip_platform.finding import Finding, looked, masked
from lotlip_platform.scaling import check_resources, what_lacks
from lotlip_platform.storage import open_store

MARK = "LOTLIP-FINDINGS "


def probe(request: Mapping[str, Any]) -> list[Finding]:
    """Look at all that a job needs; never raises for what it finds.

    `request`: the `stores` that it writes to and the `data_sets` that it reads, the `tracking_uri`
    of its config, and the `clusters` that it asks for, as the values of `ClusterConfig`.
    """
    looks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", doctor_machine.python_version),
        ("packages", doctor_machine.packages),
    ]
    for uri in request["stores"]:
        looks.append(("store", lambda uri=uri: doctor_services.round_trip(uri)))
    for uri in request["data_sets"]:
        looks.append(("data set", lambda uri=uri: _data_set(uri)))
    looks.append(("MLflow", lambda: _mlflow(request["tracking_uri"])))
    looks.append(("resources", lambda: _resources(request["clusters"])))
    return [looked(name, look) for name, look in looks]


def _data_set(uri: str) -> Finding:
    manifest = read_manifest(open_store(uri))
    return Finding("data set", "ok", f"{uri}: {manifest.num_samples:,} samples")


def _mlflow(uri: str) -> Finding:
    if not uri and not os.environ.get("MLFLOW_TRACKING_URI"):
        return Finding(
            "MLflow",
            "warning",
            "the cluster has no MLFLOW_TRACKING_URI: runs are recorded in a file of its head",
            "set it on the cluster's machines, or give tracking.uri= or --env",
        )
    return doctor_services.mlflow(uri)


def _resources(asked: Sequence[Mapping[str, Any]]) -> Finding:
    configs = [from_dict(ClusterConfig, dict(values)) for values in asked]
    with connected():
        for config in configs:
            check_resources(config)
        lacks = [lack for config in configs if (lack := what_lacks(config))]
    if lacks:
        advice = "its autoscaler must start more; if it may not, the job waits"
        return Finding("resources", "warning", lacks[0], advice)
    workers = ", ".join(f"{config.num_workers} workers" for config in configs)
    return Finding("resources", "ok", f"{workers}: the cluster can hold them")


def answer(findings: Sequence[Finding]) -> None:
    """Print findings for who asked, without the secrets of this machine."""
    print(f"\n{MARK}{json.dumps([asdict(masked(finding)) for finding in findings])}", flush=True)


if __name__ == "__main__":
    answer(probe(json.loads(sys.argv[1])))
