"""A proxy that breaks the answers of the S3 server."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


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
