"""`lotlip doctor --address`: a cluster from inside, on a machine of each of its kinds.

    python -m lotlip_platform.cluster_doctor REQUEST

Its head runs this, see `job_preflight.ask`; tasks look around where they are.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import GetTimeoutError, RayError

from lotlip.errors import LotlipError
from lotlip_platform import doctor_machine, doctor_services
from lotlip_platform.cluster import connected, on_node
from lotlip_platform.cluster_probe import answer
from lotlip_platform.finding import Finding, looked
from lotlip_platform.storage import open_store

_NODE_S = 120.0
_SKEW_WARNING_S, _SKEW_ERROR_S = 1.0, 60.0
_OBJECT_BYTES = 32 * 1024**2
_SLOW_MB_PER_S = 20.0
_REDUCED_BYTES = 64 * 1024**2
_REDUCTIONS = 5
_MEETING_S = 60.0


@dataclass(frozen=True)
class Kind:
    """Machines with the same resources, of which one is looked at."""

    name: str
    num_nodes: int
    node: str
    """The id of the one."""
    gpus: float


def examine(store: str) -> list[Finding]:
    """Look at a machine of each kind, and at how they reach each other.

    Raises: ClusterError if Ray does not answer where this runs.
    """
    with connected():
        kinds = _kinds(ray.nodes())
        findings = [_sizes(kinds)]
        looking = [(kind, _there(kind, _look).remote(store)) for kind in kinds]
        for kind, task in looking:
            findings += _findings_of(kind, task)
        findings.append(_collective(kinds))
    return findings


def _kinds(nodes: Sequence[Mapping[str, Any]]) -> list[Kind]:
    """The head first, then by their resources."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for node in nodes:
        if node["Alive"]:
            found.setdefault(_kind_of(node), []).append(node)
    return [
        Kind(name, len(alike), alike[0]["NodeID"], alike[0]["Resources"].get("GPU", 0.0))
        for name, alike in sorted(found.items(), key=lambda item: (item[0] != "head", item[0]))
    ]


def _kind_of(node: Mapping[str, Any]) -> str:
    has = node["Resources"]
    if "node:__internal_head__" in has:
        return "head"
    group = node.get("Labels", {}).get("ray.io/node-group", "")
    sizes = [f"{has[kind]:g} {kind}s" for kind in ("CPU", "GPU") if has.get(kind)]
    memory = f"{has.get('memory', 0) / 1e9:.0f} GB"
    return f"{group + ': ' if group else ''}{', '.join([*sizes, memory])}"


def _sizes(kinds: Sequence[Kind]) -> Finding:
    told = "; ".join(f"{kind.num_nodes} x {kind.name}" for kind in kinds)
    return Finding("machines", "ok", told)


def _there(kind: Kind, look: Any) -> Any:
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=on_node(kind.node))(look)


def _look(store: str) -> tuple[str, list[Finding]]:
    """On a machine: its name, and what was found there."""
    findings = [look() for look in doctor_machine.checks()]
    if store:
        findings.append(looked("S3 speed", lambda: _speed(store)))
    findings.append(looked("MLflow", doctor_services.mlflow))
    return socket.gethostname(), findings


def _findings_of(kind: Kind, task: ray.ObjectRef) -> list[Finding]:
    try:
        host, findings = ray.get(task, timeout=_NODE_S)
        findings.append(_skew(kind))
    except RayError as error:
        reason = " ".join(str(error).split())[-200:]
        advice = "see its logs on the cluster's dashboard"
        return [Finding(kind.name, "error", f"no task ran there: {reason}", advice)]
    return [replace(finding, name=f"{host}, {finding.name}") for finding in findings]


def _skew(kind: Kind) -> Finding:
    """Of its clock, against this machine's. Raises: RayError."""
    clock = _there(kind, _now)
    ray.get(clock.remote(), timeout=_NODE_S)  # from now on a process waits for it there
    asked = time.time()
    there: Any = ray.get(clock.remote(), timeout=_NODE_S)
    answered = time.time()
    return skew(there - (asked + answered) / 2, (answered - asked) / 2)


def _now() -> float:
    return time.time()


def skew(ahead_s: float, uncertain_s: float) -> Finding:
    """What to say of a clock that is so many seconds ahead of the head's."""
    found = f"{ahead_s:+.2f} s to the head's, +-{uncertain_s:.2f}"
    off_s = abs(ahead_s) - uncertain_s
    if off_s < _SKEW_WARNING_S:
        return Finding("clock", "ok", found)
    state = "error" if off_s > _SKEW_ERROR_S else "warning"
    return Finding("clock", state, found, "set the clocks by NTP: S3 refuses wrong times")


def _speed(uri: str) -> Finding:
    """Raises: LotlipError."""
    store, name = open_store(uri), f".lotlip-doctor-{uuid.uuid4().hex}"
    content = os.urandom(_OBJECT_BYTES)
    began = time.monotonic()
    store.write(name, content)
    written = time.monotonic()
    try:
        whole = store.read(name) == content
    finally:
        read = time.monotonic()
        store.delete(name)
    if not whole:
        return Finding("S3 speed", "error", f"{store.uri} gave back other bytes", "use another")
    megabytes = _OBJECT_BYTES / 1e6
    write_speed, read_speed = megabytes / (written - began), megabytes / (read - written)
    found = f"{store.uri}: {write_speed:.0f} MB/s written, {read_speed:.0f} MB/s read, one object"
    if min(write_speed, read_speed) < _SLOW_MB_PER_S:
        return Finding("S3 speed", "warning", found, "compare with what lotlip plan asks for")
    return Finding("S3 speed", "ok", found)


class _Meeting:
    """A process on one of two machines that send each other what gradients would be."""

    def address(self) -> str:
        with socket.socket() as found:
            found.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{found.getsockname()[1]}"

    def reduce(self, address: str, rank: int, world_size: int, on_gpu: bool) -> float:
        """Bytes of a reduced tensor in a second."""
        device = torch.device("cuda" if on_gpu else "cpu")
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", init_method=address, rank=rank, world_size=world_size
        )
        try:
            tensor = torch.ones(_REDUCED_BYTES // 4, device=device)
            dist.all_reduce(tensor)
            if on_gpu:
                torch.cuda.synchronize()
            began = time.monotonic()
            for _ in range(_REDUCTIONS):
                dist.all_reduce(tensor)
            if on_gpu:
                torch.cuda.synchronize()
            return _REDUCTIONS * _REDUCED_BYTES / (time.monotonic() - began)
        finally:
            dist.destroy_process_group()


def _collective(kinds: Sequence[Kind]) -> Finding:
    """An all-reduce between two machines: by NCCL between those with GPUs, else by gloo."""
    with_gpus = [kind for kind in kinds if kind.gpus]
    backend = "NCCL" if with_gpus else "gloo"
    nodes = _two_nodes({kind.name for kind in with_gpus or kinds})
    if len(nodes) < 2:
        return Finding(backend, "ok", "one machine: nothing to send between machines")
    try:
        speed = _reduced(nodes, on_gpu=bool(with_gpus))
    except _Busy:
        found = f"no process within {_MEETING_S:.0f} s"
        return Finding(backend, "warning", found, "are all GPUs busy? Ask again when some are free")
    except RayError as error:
        reason = " ".join(str(error).split())[-200:]
        advice = "open all ports between the machines; set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME"
        return Finding(backend, "error", f"no all-reduce between two machines: {reason}", advice)
    found = f"all-reduce of 64 MiB between {len(nodes)} machines: {speed / 1e9:.2f} GB/s"
    return Finding(backend, "ok", found)


class _Busy(Exception):
    """No process could be started where all-reduce was to be tried."""


def _two_nodes(names: set[str]) -> list[str]:
    """Ids of up to two machines of these kinds, those that train rather than the head."""
    alive = [node for node in ray.nodes() if node["Alive"] and _kind_of(node) in names]
    alive.sort(key=lambda node: _kind_of(node) == "head")
    return [node["NodeID"] for node in alive[:2]]


def _reduced(nodes: Sequence[str], *, on_gpu: bool) -> float:
    """Raises: RayError, _Busy."""
    actor: Any = ray.remote(num_cpus=0, num_gpus=int(on_gpu))(_Meeting)
    members = [actor.options(scheduling_strategy=on_node(node)).remote() for node in nodes]
    try:
        try:
            addresses = [member.address.remote() for member in members]
            address, *_ = ray.get(addresses, timeout=_MEETING_S)
        except GetTimeoutError as error:
            raise _Busy from error
        reducing = [
            member.reduce.remote(address, rank, len(members), on_gpu)
            for rank, member in enumerate(members)
        ]
        return min(ray.get(reducing, timeout=_MEETING_S))
    finally:
        for member in members:
            ray.kill(member)


if __name__ == "__main__":
    try:
        found = examine(json.loads(sys.argv[1])["store"])
    except LotlipError as error:
        found = [Finding("Ray", "error", str(error))]
    answer(found)
