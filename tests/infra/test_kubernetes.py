"""The manifests of infra/kubernetes are what Kubernetes and KubeRay take.

No cluster was asked: kustomize builds them, and the schemas of both judge what comes of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_manifests import (
    FOLDER,
    OVERLAYS,
    RAY_KINDS,
    Manifest,
    called,
    installed,
    kustomize,
    of_kind,
    pods,
    ray_cluster,
)
from ray.serve.schema import ServeDeploySchema

from lotlip_platform.serve_config import ServeConfig

pytestmark = pytest.mark.skipif(kustomize() is None, reason="kustomize is not installed")

KUBERNETES = ("1.30", "1.37")
"""The oldest that these are written for, and the newest whose schemas are there."""
FIELDS = Path(__file__).with_name("kuberay-fields.json")
RENEW = "; if KubeRay has this field: python tests/infra/kuberay_fields.py SCHEMA_FOLDER"


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_an_overlay_installs_is_strictly_valid(overlay: str, version: str) -> None:
    for manifest in installed(overlay):
        if manifest["kind"] in RAY_KINDS:
            # Kubernetes' part of what KubeRay defines.
            _check({**_core("ConfigMap"), "metadata": manifest["metadata"]}, version)
        else:
            _check(manifest, version)
    for pod in pods(installed(overlay)):
        template = {"metadata": {"labels": dict(pod.labels)}, "spec": _without_autoscaler(pod.spec)}
        _check({**_core("PodTemplate"), "template": template}, version)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_knows_every_field(overlay: str) -> None:
    problems = [
        f"{called(manifest)}: {problem}"
        for manifest in installed(overlay)
        if manifest["kind"] in RAY_KINDS
        for problem in _ray_problems(manifest)
    ]
    assert not problems, "\n".join(problems)


def _misspelt(cluster: Manifest) -> None:
    cluster["workerGroupSpecs"][0]["minReplica"] = cluster["workerGroupSpecs"][0]["minReplicas"]


def _misspelt_in_a_pod(cluster: Manifest) -> None:
    cluster["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsNonroot"] = True


def _wrong_type(cluster: Manifest) -> None:
    cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _wrong_value(cluster: Manifest) -> None:
    cluster["authOptions"]["mode"] = "password"


def _missing(cluster: Manifest) -> None:
    del cluster["headGroupSpec"]


@pytest.mark.parametrize(
    "spoil, told",
    [
        (_misspelt, "'minReplica' was unexpected"),
        (_misspelt_in_a_pod, "'runAsNonroot' was unexpected"),
        (_wrong_type, "0 is not of type 'string'"),
        (_wrong_value, "'password' is not one of ['disabled', 'token']"),
        (_missing, "'headGroupSpec' is a required property"),
    ],
)
@pytest.mark.parametrize("kind, name", [("RayCluster", "lotlip"), ("RayService", "search")])
def test_a_wrong_field_is_refused(
    kind: str, name: str, spoil: Callable[[Manifest], None], told: str
) -> None:
    manifest = copy.deepcopy(of_kind(installed("production"), kind)[name])
    cluster = ray_cluster(manifest)
    assert cluster is not None
    spoil(cluster)
    (problem,) = _ray_problems(manifest)
    assert told in problem
    assert (RENEW in problem) == ("was unexpected" in problem)


def test_each_component_and_overlay_is_built_by_some_overlay() -> None:
    folders = [path.parent for path in FOLDER.glob("*/*/kustomization.yaml")]
    overlays = {folder.name for folder in folders if folder.parent.name == "overlays"}
    assert overlays == set(OVERLAYS)
    used = {
        Path(component).name
        for overlay in OVERLAYS
        for component in yaml.safe_load(
            (FOLDER / "overlays" / overlay / "kustomization.yaml").read_text()
        )["components"]
    }
    assert {folder.name for folder in folders if folder.parent.name == "components"} == used


def test_the_search_is_configured_as_serve_and_the_service_take_it() -> None:
    service = of_kind(installed("production"), "RayService")["search"]
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    arguments = dict(application["args"])
    assert arguments.pop("model").startswith("models:/")
    assert arguments.pop("index").startswith("s3://")
    settings = ServeConfig(**{**arguments, "allowed_hosts": tuple(arguments["allowed_hosts"])})
    assert f"{service['metadata']['name']}-serve-svc.lotlip.svc" in settings.hosts
    assert settings.features.startswith("s3://")  # or no replica finds what another has computed


def _core(kind: str) -> Manifest:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "any"}}


def _check(manifest: Manifest, version: str) -> None:
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        pytest.fail(f"{called(manifest)} {error.json_path}: {error.message}")


def _without_autoscaler(spec: Any) -> Manifest:
    """What stands for KubeRay's container is no whole container."""
    return {**spec, "containers": [c for c in spec["containers"] if c["name"] != "autoscaler"]}


def _ray_problems(manifest: Manifest) -> list[str]:
    kept = json.loads(FIELDS.read_text())
    schema = {**kept["schemas"][manifest["kind"]], "$defs": kept["$defs"]}
    return [
        f"{error.json_path}: {error.message}"
        + (RENEW if error.validator == "additionalProperties" else "")
        for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    ]
