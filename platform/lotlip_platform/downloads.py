"""Images from the web, fetched as guests should: no faster than allowed, and with a reason for each
one that did not come."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from aiolimiter import AsyncLimiter

from lotlip.errors import ConfigError

_MOST_REDIRECTS = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_CHUNK_BYTES = 1 << 16
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_FORBIDS = ("noai", "noimageai")
"""In X-Robots-Tag: whoever owns the image does not want models to be trained on it."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """How images are fetched from the web; the limits are of all workers together."""

    concurrency: int = 64
    """Requests in flight."""
    per_host: int = 4
    """Of them, to one host."""
    requests_per_s: float = 0.0
    """0: no limit but the others."""
    timeout_s: float = 20.0
    """For one image."""
    max_attempts: int = 3
    """At an image that a server is too busy for, or that breaks off."""
    max_bytes: int = 50_000_000
    """Of an image; larger ones are not taken."""
    user_agent: str = "lotlip-platform"
    """What servers are told of who asks; a URL to read more at is good manners."""
    private_hosts: bool = False
    """Also fetch from addresses that are not public, such as those of a network of your own: rows
    of foreign files could otherwise ask for what only the cluster can reach."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "per_host", "max_attempts", "max_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"download.{name}={getattr(self, name)} must be 1 or more")
        if self.requests_per_s < 0:
            raise ConfigError(f"download.requests_per_s={self.requests_per_s} must be 0 or more")
        if self.timeout_s <= 0:
            raise ConfigError(f"download.timeout_s={self.timeout_s} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What came of one image."""

    content: bytes = b""
    kind: str = ""
    """Of what went wrong, a word or two; empty if nothing did."""
    reason: str = ""


def is_url(image: str) -> bool:
    return image.startswith(("http://", "https://"))


def download(
    urls: Mapping[int, str], config: DownloadConfig, *, num_workers: int = 1
) -> Iterator[tuple[int, Fetched]]:
    """What is at each address, as it gets ready; `num_workers` share the limits."""
    with asyncio.Runner() as runner:
        fetching = _fetch_all(urls, config, num_workers)
        while True:
            try:
                yield runner.run(_next(fetching))
            except StopAsyncIteration:
                return


async def _next(fetching: Any) -> tuple[int, Fetched]:
    return await anext(fetching)


async def _fetch_all(urls: Mapping[int, str], config: DownloadConfig, num_workers: int) -> Any:
    share = max(1, config.concurrency // num_workers)
    per_s = config.requests_per_s / num_workers
    limit = AsyncLimiter(max(1.0, per_s), max(1.0, per_s) / per_s) if per_s else None
    connector = aiohttp.TCPConnector(
        limit=share,
        limit_per_host=max(1, config.per_host // num_workers),
        resolver=_Resolver(config.private_hosts),
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.timeout_s),
        headers={"User-Agent": config.user_agent},
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        left, pending = iter(urls.items()), set()
        try:
            while True:
                while len(pending) < share and (item := next(left, None)) is not None:
                    pending.add(asyncio.create_task(_fetch(session, limit, *item, config)))
                if not pending:
                    return
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in pending:
                task.cancel()


async def _fetch(
    session: aiohttp.ClientSession,
    limit: AsyncLimiter | None,
    number: int,
    url: str,
    config: DownloadConfig,
) -> tuple[int, Fetched]:
    found, again_s = Fetched(), 0.0
    for attempt in range(config.max_attempts):
        if attempt:
            longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempt - 1))
            await asyncio.sleep(max(again_s, longest * random.uniform(0.5, 1.0)))
        if limit:
            await limit.acquire()
        try:
            async with asyncio.timeout(config.timeout_s):
                found, again_s = await _attempt(session, url, config)
        except TimeoutError:
            found = Fetched(kind="timeout", reason=f"not there within {config.timeout_s:g} s")
            again_s = 0.0
        if again_s < 0 or not found.kind:
            break
    return number, found


async def _attempt(
    session: aiohttp.ClientSession, url: str, config: DownloadConfig
) -> tuple[Fetched, float]:
    """What came, and after how many seconds another attempt may help; -1 for never."""
    try:
        for _ in range(_MOST_REDIRECTS + 1):
            if problem := _problem(url, config.private_hosts):
                return Fetched(kind="address", reason=problem), -1
            async with session.get(url, allow_redirects=False) as answer:
                if answer.status in (301, 302, 303, 307, 308) and "Location" in answer.headers:
                    url = urljoin(url, answer.headers["Location"])
                    continue
                return await _read(answer, config)
        return Fetched(kind="redirects", reason=f"more than {_MOST_REDIRECTS} redirects"), -1
    except (aiohttp.InvalidURL, ValueError) as error:
        return Fetched(kind="address", reason=f"no address: {_line(error)}"), -1
    except (aiohttp.ClientError, OSError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, _PrivateError):
            return Fetched(kind="address", reason=str(cause)), -1
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return Fetched(kind="host", reason="there is no such host"), -1
        return Fetched(kind="connection", reason=_line(error)), 0.0


async def _read(answer: aiohttp.ClientResponse, config: DownloadConfig) -> tuple[Fetched, float]:
    if answer.status != 200:
        may_pass = answer.status in _PASSING
        again_s = _retry_after_s(answer.headers) if may_pass else -1
        reason = f"{answer.status} {answer.reason or ''}".strip()
        return Fetched(kind=f"status {answer.status}", reason=reason), again_s
    tags = ", ".join(answer.headers.getall("X-Robots-Tag", [])).lower()
    if any(word in tags.replace(":", " ").replace(",", " ").split() for word in _FORBIDS):
        reason = f"its owner forbids training on it (X-Robots-Tag: {tags})"
        return Fetched(kind="forbidden", reason=reason), -1
    content = bytearray()
    async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
        content += chunk
        if len(content) > config.max_bytes:
            return Fetched(kind="size", reason=f"more than {config.max_bytes:,} bytes"), -1
    return Fetched(content=bytes(content)), -1


class _PrivateError(OSError):
    """The address is not a public one."""


class _Resolver(AbstractResolver):
    """Names to addresses, but for those that are not public."""

    def __init__(self, private_hosts: bool) -> None:
        self._inner, self._private_hosts = ThreadedResolver(), private_hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not self._private_hosts:
            for one in found:
                if not ipaddress.ip_address(one["host"]).is_global:
                    raise _PrivateError(f"{host} is {one['host']}, which is no public address")
        return found

    async def close(self) -> None:
        await self._inner.close()


def _problem(url: str, private_hosts: bool) -> str:
    """Why an address is not asked; empty if it is."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"no http:// or https:// address: {url[:200]}"
    try:
        address = ipaddress.ip_address(parts.hostname)
    except ValueError:  # a name, which is looked up
        return ""
    if private_hosts or address.is_global:
        return ""
    return f"{address} is no public address"


def _retry_after_s(headers: Mapping[str, str]) -> float:
    try:
        return min(max(float(headers.get("Retry-After", "0")), 0.0), _LONGEST_PAUSE_S)
    except ValueError:
        return 0.0


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def hosts_of(urls: Sequence[str]) -> list[str]:
    return [urlsplit(url).hostname or "" for url in urls]
