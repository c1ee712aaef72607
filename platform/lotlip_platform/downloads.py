"""Images from the web, fetched as guests should: no faster than allowed, and with a reason for each
one that did not come."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from aiolimiter import AsyncLimiter
from yarl import URL

from lotlip.errors import ConfigError

_MOST_REDIRECTS = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_CHUNK_BYTES = 1 << 16
_AHEAD = 4
"""So many times what may be in flight is fetched before somebody takes it."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
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


def num_downloaders(config: DownloadConfig, num_workers: int) -> int:
    """So many of the workers may fetch at once: each takes one connection to a host at least."""
    return min(num_workers, config.per_host, config.concurrency)


def download(
    urls: Sequence[str], config: DownloadConfig, *, num_workers: int = 1
) -> Iterator[Fetched]:
    """What is at each address, in their order; `num_workers` share the limits.

    No more is fetched ahead than a few times what may be in flight.
    """
    share = max(1, config.concurrency // num_workers)
    loop = asyncio.new_event_loop()
    # Of its own, so that connections are attended to while somebody looks at what came.
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def begin(work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, loop)

    fetcher = _Fetcher(config, num_workers, share)
    waiting: deque[Future[Fetched]] = deque()
    try:
        begin(fetcher.open()).result()
        for url in urls:
            if len(waiting) >= _AHEAD * share:
                yield waiting.popleft().result()
            waiting.append(begin(fetcher.fetch(url)))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        begin(fetcher.close()).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Fetcher:
    """One worker's client, with its share of the limits."""

    def __init__(self, config: DownloadConfig, num_workers: int, share: int) -> None:
        self._config = config
        self._in_flight = asyncio.Semaphore(share)
        of_host = max(1, config.per_host // num_workers)
        self._of_host = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(of_host))
        per_s = config.requests_per_s / num_workers
        self._limit = AsyncLimiter(1, 1 / per_s) if per_s else None
        self._not_before: dict[str, float] = {}

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, resolver=_Resolver(self._config.private_hosts)),
            timeout=aiohttp.ClientTimeout(total=self._config.timeout_s),
            headers={"User-Agent": self._config.user_agent},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    async def fetch(self, url: str) -> Fetched:
        """What came, after as many attempts as it takes."""
        host, found = host_of(url), Fetched()
        # Waiting for a turn is no part of the time that an image may take.
        async with self._of_host[host], self._in_flight:
            for attempt in range(self._config.max_attempts):
                if attempt:
                    longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempt - 1))
                    await asyncio.sleep(longest * random.uniform(0.5, 1.0))
                while (left := self._not_before.get(host, 0.0) - time.monotonic()) > 0:
                    if left > _LONGEST_PAUSE_S:
                        reason = f"{host} wants nobody to ask for another {left:.0f} s"
                        return found if found.kind else Fetched(kind="busy", reason=reason)
                    await asyncio.sleep(left)
                found, again_s = await self._attempt(url)
                if again_s > 0:
                    self._not_before[host] = time.monotonic() + again_s
                if again_s < 0 or not found.kind:
                    break
        return found

    async def _attempt(self, address: str) -> tuple[Fetched, float]:
        """What came, and after how many seconds another attempt may help; -1 for never."""
        config = self._config
        try:
            url = URL(address)
            for _ in range(_MOST_REDIRECTS + 1):
                if problem := _problem(url, config.private_hosts):
                    return Fetched(kind="address", reason=problem), -1
                if self._limit:
                    await self._limit.acquire()
                async with self._session.get(url, allow_redirects=False) as answer:
                    if answer.status in (301, 302, 303, 307, 308) and "Location" in answer.headers:
                        url = url.join(URL(answer.headers["Location"]))
                        continue
                    return await _read(answer, config)
            return Fetched(kind="redirects", reason=f"more than {_MOST_REDIRECTS} redirects"), -1
        except TimeoutError:
            reason = f"not there within {config.timeout_s:g} s"
            return Fetched(kind="timeout", reason=reason), 0.0
        except (aiohttp.InvalidURL, ValueError) as error:
            return Fetched(kind="address", reason=f"no address: {_line(error)}"), -1
        except (aiohttp.ClientError, OSError) as error:
            cause = error.__cause__ or error
            if isinstance(cause, _PrivateError):
                return Fetched(kind="address", reason=str(cause)), -1
            if isinstance(error, aiohttp.ClientConnectorDNSError):
                if getattr(cause, "errno", 0) == socket.EAI_AGAIN:
                    return Fetched(kind="look-up", reason="its host could not be looked up"), 0.0
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
                if not _is_public(ipaddress.ip_address(one["host"])):
                    raise _PrivateError(f"{host} is {one['host']}, which is no public address")
        return found

    async def close(self) -> None:
        await self._inner.close()


def _problem(url: URL, private_hosts: bool) -> str:
    """Why an address is not asked; empty if it is. Of the parsed one: letters that stand for
    digits are digits by then."""
    if url.scheme not in ("http", "https") or not url.host:
        return f"no http:// or https:// address: {str(url)[:200]}"
    try:
        address = ipaddress.ip_address(url.host)
    except ValueError:  # a name, which is looked up
        return ""
    if private_hosts or _is_public(address):
        return ""
    return f"{address} is no public address"


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Also of an IPv4 address that hides in one of IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            hidden = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if hidden is not None:
            return hidden.is_global
    return address.is_global


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """What the server asked for, as seconds or as a date; 0 if it did not."""
    text = headers.get("Retry-After", "0")
    with suppress(ValueError):
        return max(float(text), 0.0)
    with suppress(ValueError, TypeError):
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    return 0.0


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def host_of(url: str) -> str:
    """Empty if it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
