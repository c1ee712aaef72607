"""Who reaches whom in the manifests of infra/kubernetes, and under which address."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
from kubernetes_manifests import (
    NAMESPACE,
    OVERLAYS,
    Manifest,
    Pod,
    called,
    installed,
    kustomize,
    of_kind,
    pods,
    values,
)

pytestmark = [
    pytest.mark.skipif(kustomize() is None, reason="kustomize is not installed"),
    pytest.mark.parametrize("overlay", OVERLAYS),
]


def test_network_policies_meet_pods_and_ports_that_exist(overlay: str) -> None:
    manifests = installed(overlay)
    everyone = pods(manifests)
    for policy in of_kind(manifests, "NetworkPolicy").values():
        spec, name = policy["spec"], policy["metadata"]["name"]
        assert spec["policyTypes"] == ["Ingress"]
        to = [pod for pod in everyone if _selects(spec["podSelector"], pod)]
        assert to, name
        for rule in spec.get("ingress", []):
            for source in rule["from"]:  # an empty rule, or source, would be everybody
                assert source.keys() in ({"podSelector"}, {"namespaceSelector"}), name
                (selector,) = source.values()
                assert selector.get("matchLabels"), name
                if "podSelector" in source:
                    assert any(_selects(selector, pod) for pod in everyone), (name, selector)
            for opened in rule.get("ports", []):
                assert any(opened["port"] in pod.ports.values() for pod in to), (name, opened)


def test_what_nobody_is_let_in_to_stays_closed(overlay: str) -> None:
    """Only Ray's pods reach Ray's other ports, and only MLflow reaches PostgreSQL."""
    policies = of_kind(installed(overlay), "NetworkPolicy")
    assert policies["deny-all"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    open_to_namespaces = {
        opened["port"]
        for policy in policies.values()
        for rule in policy["spec"].get("ingress", [])
        if any("namespaceSelector" in source for source in rule["from"])
        for opened in rule["ports"]
    }
    # Dashboard, two kinds of serving, MLflow; three of metrics.
    assert open_to_namespaces == {8265, 8000, 8300, 5000, 8080, 44217, 44227}
    (rule,) = policies["postgres"]["spec"]["ingress"]
    label = "app.kubernetes.io/name"
    let_in = [source["podSelector"]["matchLabels"][label] for source in rule["from"]]
    assert let_in == ["mlflow", "mlflow-upgrade"]


def test_services_lead_to_pods_and_their_ports(overlay: str) -> None:
    manifests = installed(overlay)
    for service in of_kind(manifests, "Service").values():
        spec = service["spec"]
        found = [pod for pod in pods(manifests) if _has(pod.labels, spec["selector"])]
        assert len(found) == 1, called(service)
        for port in spec["ports"]:
            assert found[0].ports[port["targetPort"]] == port["port"], called(service)
    for one in of_kind(manifests, "StatefulSet").values():
        assert one["spec"]["serviceName"] in of_kind(manifests, "Service")


def test_addresses_are_those_of_services(overlay: str) -> None:
    manifests = installed(overlay)
    services = of_kind(manifests, "Service")
    maps = of_kind(manifests, "ConfigMap")
    tracking = maps["lotlip-environment"]["data"]["MLFLOW_TRACKING_URI"]
    netlocs = [urlsplit(tracking).netloc]
    if store := maps["lotlip-store"]["data"]["AWS_ENDPOINT_URL"]:
        netlocs.append(urlsplit(store).netloc)
    netlocs += [
        options["redisAddress"] for options in values(manifests, "gcsFaultToleranceOptions")
    ]
    (mlflow,) = of_kind(manifests, "Deployment")["mlflow"]["spec"]["template"]["spec"]["containers"]
    netlocs += [
        f"{variable['value']}:5432" for variable in mlflow["env"] if variable["name"] == "PGHOST"
    ]
    assert len(netlocs) == 3
    for netloc in netlocs:
        host, _, port = netloc.partition(":")
        name, *rest = host.split(".")
        assert rest in ([], [NAMESPACE, "svc"]), netloc
        assert int(port) in [port["port"] for port in services[name]["spec"]["ports"]], netloc
    allowed = mlflow["args"][mlflow["args"].index("--allowed-hosts") + 1].split(",")
    assert urlsplit(tracking).netloc in allowed


def test_the_stand_in_for_s3_takes_its_own_address(overlay: str, s3_endpoint: str) -> None:
    maps = of_kind(installed(overlay), "ConfigMap")
    store = maps["lotlip-store"]["data"]["AWS_ENDPOINT_URL"]
    if not store:
        pytest.skip("AWS")
    for path in ("/of-the-pod", "/of-the-pod/an-object"):
        with closing(HTTPConnection(urlsplit(s3_endpoint).netloc)) as connection:
            connection.request("PUT", path, headers={"Host": urlsplit(store).netloc})
            assert connection.getresponse().status == 200, path


def _selects(selector: Manifest, pod: Pod) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return _has(pod.labels, selector.get("matchLabels", {}))


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return wanted.items() <= labels.items()
