"""What a cluster is asked before a job is submitted, on a real Ray."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from lotlip.configuration import to_dict
from lotlip.errors import ClusterError
from lotlip_platform.cluster import ClusterConfig
from lotlip_platform.cluster_probe import probe
from lotlip_platform.finding import Finding
from lotlip_platform.scaling import check_resources


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def request(**changes: Any) -> dict[str, Any]:
    asked = {"stores": [], "data_sets": [], "tracking_uri": "", "clusters": []}
    return {**asked, **changes}


def one(name: str, **changes: Any) -> Finding:
    (found,) = [finding for finding in probe(request(**changes)) if finding.name == name]
    return found


def test_stores_are_written_to_and_data_sets_read(
    s3_env: str, scenes_folder: Path, tmp_path: Path
) -> None:
    found = probe(request(stores=[str(tmp_path)], data_sets=[str(scenes_folder)]))
    assert [finding.state for finding in found if finding.name in ("store", "data set")] == [
        *("ok", "ok")
    ]
    assert f"{scenes_folder}: 60 samples" in [finding.found for finding in found]
    assert list(tmp_path.iterdir()) == [tmp_path / "home"] or list(tmp_path.iterdir()) == []
    missing = one("store", stores=["s3://lotlip-none/runs"])
    assert (missing.state, "bucket 'lotlip-none' does not exist" in missing.found) == (
        *("error", True),
    )
    assert "has no manifest.json" in one("data set", data_sets=[str(tmp_path)]).found


def test_a_cluster_that_knows_no_mlflow_is_a_warning_and_one_that_is_away_an_error(
    monkeypatch: pytest.MonkeyPatch, dead_url: str
) -> None:
    assert one("MLflow").state == "warning"
    assert "no MLFLOW_TRACKING_URI" in one("MLflow").found
    assert one("MLflow", tracking_uri=dead_url).state == "error"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_url)
    assert dead_url in one("MLflow").found


def test_resources_are_judged_machine_by_machine() -> None:
    fits = to_dict(ClusterConfig(num_workers=3))
    assert one("resources", clusters=[fits]).state == "ok"
    too_large = to_dict(ClusterConfig(num_workers=1, cpus_per_worker=4))
    found = one("resources", clusters=[fits, too_large])
    assert found.state == "error"
    assert "num_workers=1 with 4 CPUs each, on one machine, is more" in found.found
    with pytest.raises(ClusterError, match="with 1 CPUs and 1 GPUs each"):
        check_resources(ClusterConfig(gpus_per_worker=1))


def test_where_an_autoscaler_runs_more_than_there_is_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = ClusterConfig(num_workers=4)
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start --head --no-monitor")
    check_resources(asked)
    found = one("resources", clusters=[to_dict(asked)])
    assert found.state == "warning"
    assert "which is 3" in found.found
    monkeypatch.delenv("KUBERAY_GEN_RAY_START_CMD")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ClusterError, match="which is 3"):
        check_resources(asked)
    (tmp_path / "ray_bootstrap_config.yaml").touch()
    check_resources(asked)
