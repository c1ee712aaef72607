"""A proxy that breaks the answers of the S3 server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from faulty_proxy import FaultyProxy, reads


@pytest.fixture
def faulty(s3_env: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Puts a proxy that breaks answers to reads between this process and its S3 server."""
    proxies = []

    def start(choose: Callable[[str, str], str | None]) -> FaultyProxy:
        proxy = FaultyProxy(s3_env, reads(choose))
        proxies.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        return proxy

    yield start
    for proxy in proxies:
        proxy.stop()
