"""A real S3 server over HTTP for the tests of the wiring layer."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from moto.server import ThreadedMotoServer

AWS_VARIABLES = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server that lives as long as the tests; nothing is set globally."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_env(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Points every S3 client of this process at `s3_endpoint` and at nothing of the user's."""
    for name in AWS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "lotlip")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "lotlip")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    return s3_endpoint


@pytest.fixture(scope="session")
def faulty_proxy_module() -> ModuleType:
    """`faulty_proxy.py` beside this file, which --import-mode=importlib keeps off sys.path."""
    name = "lotlip_tests_faulty_proxy"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("faulty_proxy.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def faulty(
    s3_env: str, faulty_proxy_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable]:
    """Puts a proxy that breaks answers between this process and its S3 server."""
    proxies = []

    def start(choose: Callable[[str, str], str | None]):
        proxy = faulty_proxy_module.FaultyProxy(s3_env, choose)
        proxies.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        return proxy

    yield start
    for proxy in proxies:
        proxy.stop()
