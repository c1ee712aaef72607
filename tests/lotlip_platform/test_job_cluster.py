from pathlib import Path

import pytest

from lotlip.errors import ConfigError
from lotlip_platform import job_cluster
from lotlip_platform.job_cluster import JobCluster, _token
from lotlip_platform.local_services import ray_token_path
from lotlip_platform.service_process import Service

LOCAL = "http://127.0.0.1:8265"
OTHER = "http://cluster:8265"


@pytest.fixture(autouse=True)
def local_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `lotlip up` has it, whose variables the command then has as well."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    ray = Service("ray", LOCAL, "127.0.0.1:6399", (), 1, 1.0)
    monkeypatch.setattr(job_cluster, "services", lambda: {"ray": ray})
    ray_token_path().parent.mkdir(parents=True)
    ray_token_path().write_text("ours\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_token_path()))


def test_the_local_token_goes_to_the_local_cluster_and_to_no_other() -> None:
    assert _token(LOCAL) == "Bearer ours"
    assert _token("http://localhost:8265") == "Bearer ours"
    assert _token("http://127.0.0.1:9000") == ""
    assert _token(OTHER) == ""


def test_an_address_that_is_none_is_told() -> None:
    for address in ("http://[::1", "cluster:8265", "http://me:pw@h:1"):
        with pytest.raises(ConfigError, match="--address"):
            JobCluster(address)


def test_the_token_of_another_cluster_is_found_as_ray_finds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the home")
    assert _token(OTHER) == "Bearer of the home"
    (tmp_path / "token").write_text("of a file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert _token(OTHER) == "Bearer of a file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the variable")
    assert _token(OTHER) == "Bearer of the variable"
    assert _token(LOCAL) == "Bearer ours"
