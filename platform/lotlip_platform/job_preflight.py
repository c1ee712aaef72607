"""Whether a job can run on a cluster, told before it is submitted."""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from lotlip.configuration import to_dict
from lotlip.errors import ClusterError
from lotlip_platform.cluster_probe import MARK
from lotlip_platform.doctor_machine import DISTRIBUTION
from lotlip_platform.finding import Finding
from lotlip_platform.job_cluster import JobCluster
from lotlip_platform.job_spec import JobSpec

PROBE_S = 180.0
"""A cluster's first job unpacks the code; one that starts machines for it takes minutes."""
_END_S = 10.0
"""For a probe that is told to stop."""

Told = Callable[[Finding], None]


def check(
    spec: JobSpec,
    cluster: JobCluster,
    *,
    jobs: str,
    package: bytes,
    environment: Mapping[str, str],
    on_finding: Told,
) -> None:
    """Raises: ClusterError with the first thing that would keep the job from running."""
    found = [ray_version(cluster.ray_version)]
    on_finding(found[0])
    request = {
        "stores": list(dict.fromkeys((jobs, *spec.stores))),
        "data_sets": list(spec.data_sets),
        "tracking_uri": spec.tracking_uri,
        "clusters": [to_dict(config) for config in spec.clusters],
    }
    for finding in ask(cluster, "cluster_probe", request, package, environment):
        if finding.name == "python":
            finding = replace(finding, found=f"{finding.found}, here {platform.python_version()}")
        found.append(finding)
        on_finding(finding)
    wrong = [finding for finding in found if finding.state == "error"]
    if wrong:
        advice = f"; {wrong[0].advice}" if wrong[0].advice else ""
        raise ClusterError(
            f"not submitted: on {cluster.address}, {wrong[0].name}: {wrong[0].found}{advice}"
        )


def ask(
    cluster: JobCluster,
    module: str,
    request: Mapping[str, Any],
    package: bytes,
    environment: Mapping[str, str],
    timeout_s: float = PROBE_S,
) -> list[Finding]:
    """What a module of ours finds when the cluster's head runs it. Raises: ClusterError."""
    command = f"python -m lotlip_platform.{module} {shlex.quote(json.dumps(request))}"
    id = cluster.submit(command, package=package, environment=environment)
    try:
        job = cluster.wait(id, timeout_s)
    except BaseException:
        with contextlib.suppress(ClusterError):  # what came first is what is told
            cluster.stop(id)
            cluster.wait(id, _END_S)
            cluster.delete(id)
        raise
    log = cluster.log(id)
    answers = [line for line in log.splitlines() if line.startswith(MARK)]
    if not answers:
        lines = [line.strip() for line in (log or job.message or "").splitlines()]
        reason = next((line for line in reversed(lines) if line), "it said nothing")
        raise ClusterError(
            f"{cluster.address} can't run this code: {reason[:300]}; build its image as "
            f"infra/README.md says (job {id} has all of it)"
        )
    cluster.delete(id)
    return [Finding(**values) for values in json.loads(answers[-1].removeprefix(MARK))]


def ray_version(theirs: str) -> Finding:
    """Whether our code runs with the cluster's Ray."""
    ours = metadata.version("ray")
    wanted = next(
        requirement.specifier
        for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or ())
        if requirement.name == "ray"
    )
    found = f"{theirs}, here {ours}"
    if not wanted.contains(theirs, prereleases=True):
        return Finding("Ray", "error", f"{found}; the job needs {wanted}", "upgrade the cluster")
    if Version(theirs) != Version(ours):
        return Finding("Ray", "warning", found, "the job runs with the cluster's")
    return Finding("Ray", "ok", found)
