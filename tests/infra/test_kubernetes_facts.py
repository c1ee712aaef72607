"""What the manifests of infra/kubernetes say of each other is true."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from kubernetes_manifests import (
    NAMESPACE,
    OVERLAYS,
    ROOT,
    Manifest,
    installed,
    kustomize,
    leaves,
    of_kind,
    pods,
    ray_cluster,
    values,
)

pytestmark = [
    pytest.mark.skipif(kustomize() is None, reason="kustomize is not installed"),
    pytest.mark.parametrize("overlay", OVERLAYS),
]

SECRETS = {
    "lotlip-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "lotlip-mlflow": {
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_AUTH_ADMIN_PASSWORD",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
    },
    "lotlip-postgres": {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"},
    "lotlip-redis": {"password"},
}
"""Whoever installs an overlay makes these; infra/README.md tells how."""
OF_FAULT_TOLERANCE = {"lotlip-redis"}
SECRET_NAME = re.compile("PASSWORD|SECRET|TOKEN|ACCESS_KEY|REDISCLI_AUTH")
PASSWORD_IN_URI = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def test_secrets_are_referred_to_and_never_written(overlay: str) -> None:
    manifests = installed(overlay)
    assert not of_kind(manifests, "Secret")
    used: dict[str, set[str]] = {}
    for reference in values(manifests, "secretKeyRef"):
        used.setdefault(reference["name"], set()).add(reference["key"])
    without = OF_FAULT_TOLERANCE if overlay == "small" else set()
    assert used == {name: keys for name, keys in SECRETS.items() if name not in without}
    for text in leaves(manifests):
        assert not PASSWORD_IN_URI.search(text), text
    for variable in _variables(manifests):
        if SECRET_NAME.search(variable["name"]):
            assert "value" not in variable, variable


def test_what_is_said_of_config_maps_is_there(overlay: str) -> None:
    manifests = installed(overlay)
    maps = of_kind(manifests, "ConfigMap")
    for reference in values(manifests, "configMapRef"):
        assert reference["name"] in maps
    for reference in values(manifests, "configMapKeyRef"):
        assert reference["key"] in maps[reference["name"]]["data"]
    for volume in values(manifests, "configMap"):
        assert volume["name"] in maps


def test_no_container_may_more_than_it_must(overlay: str) -> None:
    for pod in pods(installed(overlay)):
        of_pod = pod.spec["securityContext"]
        assert of_pod["runAsNonRoot"], pod.name
        assert of_pod["runAsUser"] > 0
        assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod.containers:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, (pod.name, container["name"])
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert own.keys() <= {
                "allowPrivilegeEscalation",
                "capabilities",
                "readOnlyRootFilesystem",
            }
        # Ray's head alone asks Kubernetes for something: its autoscaler.
        is_head = pod.name == "RayCluster/lotlip head"
        assert pod.spec.get("automountServiceAccountToken", True) == is_head, pod.name


def test_memory_is_limited_to_what_is_asked_for(overlay: str) -> None:
    for pod in pods(installed(overlay)):
        for container in pod.containers:
            resources = container["resources"]
            assert resources["limits"]["memory"] == resources["requests"]["memory"], pod.name
        memory = sum(_bytes(c["resources"]["limits"]["memory"]) for c in pod.containers)
        for volume in pod.spec.get("volumes", []):
            folder = volume.get("emptyDir")
            if folder is None:
                continue
            assert "sizeLimit" in folder, (pod.name, volume)
            if folder.get("medium") == "Memory":
                assert _bytes(folder["sizeLimit"]) <= memory / 2, pod.name


def test_images_have_a_tag_and_ours_is_named_in_one_place(overlay: str) -> None:
    for pod in pods(installed(overlay)):
        for container in pod.containers:
            name, _, tag = container["image"].rpartition(":")
            assert name, container["image"]
            assert "latest" not in tag
            if "lotlip" in name:
                assert name == "registry.example.com/lotlip/platform"
                has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
                assert tag.endswith("-cuda" if has_gpu else "-cpu"), pod.name


def test_volumes_that_are_mounted_exist(overlay: str) -> None:
    manifests = installed(overlay)
    claims = of_kind(manifests, "PersistentVolumeClaim")
    for pod in pods(manifests):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        if pod.name.startswith("StatefulSet/"):
            volumes.add("data")
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in volumes, pod.name
    for claim in values(manifests, "persistentVolumeClaim"):
        assert claim["claimName"] in claims


def test_ray_is_the_version_that_is_pinned(overlay: str) -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    clusters = [cluster for cluster in map(ray_cluster, installed(overlay)) if cluster]
    assert len(clusters) == 2
    for cluster in clusters:
        assert cluster["rayVersion"] == pinned[1]
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_workers_have_the_time_to_save(overlay: str) -> None:
    cluster = ray_cluster(of_kind(installed(overlay), "RayCluster")["lotlip"])
    assert cluster is not None
    for group in cluster["workerGroupSpecs"]:
        assert "replicas" not in group  # the autoscaler's
        spec = group["template"]["spec"]
        variables = {v["name"]: v.get("value") for v in spec["containers"][0]["env"]}
        drained_s = int(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        grace_s = spec["terminationGracePeriodSeconds"]
        assert 60 <= drained_s < grace_s, group["groupName"]
        if group["groupName"] == "spot":
            assert grace_s < 120  # what AWS gives


def test_the_job_runs_on_the_cluster_that_is_there(overlay: str) -> None:
    (job,) = of_kind(installed(overlay), "RayJob").values()
    name = job["spec"]["clusterSelector"]["ray.io/cluster"]
    cluster = of_kind(installed(overlay), "RayCluster")[name]
    assert job["metadata"]["namespace"] == cluster["metadata"]["namespace"] == NAMESPACE


def test_mlflow_knows_its_users_as_in_compose(overlay: str) -> None:
    inside = of_kind(installed(overlay), "ConfigMap")["lotlip-mlflow-auth"]["data"]["auth.ini"]
    file = (ROOT / "infra" / "mlflow" / "auth.ini").read_text()
    assert _settings(inside) == _settings(file)


def _settings(text: str) -> Mapping[str, str]:
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return dict(parser["mlflow"])


def _variables(manifests: Any) -> Iterator[Manifest]:
    for variables in values(manifests, "env"):
        yield from variables


def _bytes(quantity: str) -> int:
    number = quantity.rstrip("KMGi")
    return int(number) * UNITS[quantity[len(number) :]]
