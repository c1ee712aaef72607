"""What the dashboards ask for is what is really told: to a Ray that runs, by a run's events."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml

from lotlip_platform.run_metrics import RunMetrics
from lotlip_platform.serve_config import ServeConfig
from lotlip_platform.serve_metrics import Metrics, merged

MONITORING = Path(__file__).parents[2] / "infra" / "monitoring"
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))
FUNCTIONS = {"sum", "by", "rate", "increase", "histogram_quantile", "count", "max"}
ON_GPUS = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"}
"""Ray tells them where there are GPUs; their names are from its source, see the test."""
EVENTS = [
    {"kind": "born", "rank": 0},
    {"kind": "metrics", "step": 10, "values": {"train/step_s": 0.1, "train/loss": 3.0}},
    {
        "kind": "metrics",
        "step": 20,
        "values": {
            "train/step_s": 0.1,
            "train/loss": 2.0,
            "train/samples_per_s": 100.0,
            "train/mfu": 0.4,
            "train/worker_tflops_per_s": 1.0,
            "train/grad_norm": 1.0,
            "train/data_wait_share": 0.1,
            "train/skipped_steps": 0.0,
            "system/worker_memory_usage_megabytes": 500.0,
            "eval/scenes/long_text_to_image_r1": 0.5,
        },
    },
    {"kind": "saved", "step": 20, "seconds": 0.7},
    {"kind": "faults", "count": 2},
    {"kind": "bad", "samples": [{}, {}, {}]},
]


def queries(dashboard: Path) -> list[str]:
    panels = json.loads(dashboard.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def metrics_of(query: str) -> set[str]:
    """The names of metrics in a PromQL query, all of which are ours or Ray's."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|by \([^)]*\)", " ", query.replace('{__name__=~"', " "))
    return set(re.findall(r"[a-z_][a-z0-9_]{3,}", bare)) - FUNCTIONS


@pytest.fixture(scope="module")
def exposed() -> Iterator[str]:
    """What Ray tells Prometheus while a run's driver has told it the events."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    ray.get(ray.remote(_nothing).remote())
    clock = iter([100.0, 104.0, 104.0])
    metrics = RunMetrics("a-run", now=lambda: next(clock))
    for event in EVENTS:
        metrics.take(event)
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline, text = time.monotonic() + 60, ""
    while time.monotonic() < deadline and not (
        all(f"{name}{{" in text for name in ("ray_lotlip_train_goodput", "ray_node_mem_used"))
        and "ray_tasks{" in text
    ):
        time.sleep(1)
        try:
            text = urllib.request.urlopen(url, timeout=5).read().decode()
        except OSError:
            continue
    yield text
    ray.shutdown()


def _nothing() -> None:
    """A task, for Ray to tell of."""


def value_of(text: str, name: str) -> float:
    found = re.search(rf'^{name}\{{[^}}]*run="a-run"[^}}]*\}} (\S+)$', text, re.MULTILINE)
    assert found, f"{name} is not told"
    return float(found[1])


def test_a_runs_events_are_told_to_prometheus(exposed: str) -> None:
    assert value_of(exposed, "ray_lotlip_train_loss") == 2.0
    # Ten steps of 0.1 s are kept, of 4 s; those before the first log are not this driver's.
    assert value_of(exposed, "ray_lotlip_train_goodput") == pytest.approx(0.25)
    assert value_of(exposed, "ray_lotlip_store_faults_total") == 2
    assert value_of(exposed, "ray_lotlip_bad_samples_total") == 3
    assert value_of(exposed, "ray_lotlip_workers_started_total") == 1
    assert value_of(exposed, "ray_lotlip_checkpoint_seconds_count") == 1


@pytest.mark.parametrize("name", ["training", "cluster"])
def test_each_query_of_a_dashboard_asks_for_what_a_cluster_tells(exposed: str, name: str) -> None:
    (dashboard,) = [path for path in DASHBOARDS if path.stem == name]
    told = set(re.findall(r"^(\w+)[{ ]", exposed, re.MULTILINE))
    for query in queries(dashboard):
        if "__name__" in query:
            assert any(re.fullmatch(r"ray_lotlip_eval_.+_r1", one) for one in told)
            continue
        assert metrics_of(query), query
        missing = metrics_of(query) - told - ON_GPUS
        assert not missing, f"{query} asks for {missing}"


def test_what_only_clusters_with_gpus_tell_is_named_as_in_rays_source() -> None:
    agent = Path(ray.__file__).parent / "dashboard/modules/reporter/reporter_agent.py"
    source = agent.read_text()
    for name in ON_GPUS:
        assert f'"{name.removeprefix("ray_")}"' in source, name


def test_the_dashboard_of_serving_asks_for_what_a_service_tells() -> None:
    metrics = Metrics()
    metrics.answered("/v1/search", 200, 0.1)
    metrics.batched(3)
    metrics.reloaded("loaded")
    metrics.describe("models:/lotlip/1", "abc", 10)
    told = set(
        re.findall(r"^(\w+)[{ ]", merged([("one", metrics.families())]).decode(), re.MULTILINE)
    )
    (dashboard,) = [path for path in DASHBOARDS if path.stem == "serving"]
    for query in queries(dashboard):
        assert metrics_of(query), query
        assert metrics_of(query) <= told, query


def test_dashboards_are_ones_that_grafana_finds() -> None:
    uids = {json.loads(path.read_text())["uid"] for path in DASHBOARDS}
    assert uids == {"lotlip-training", "lotlip-cluster", "lotlip-serving"}
    provisioned = MONITORING / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
    (source,) = yaml.safe_load(provisioned.read_text())["datasources"]
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            assert panel["datasource"]["uid"] == source["uid"]
            assert all(target["expr"] for target in panel["targets"])


def test_prometheus_asks_where_serve_and_ray_listen() -> None:
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    ports = {job["job_name"]: job["dns_sd_configs"][0]["port"] for job in jobs}
    assert ports["lotlip-serve"] == ServeConfig().port
    assert ports["ray"] == 8080
