"""What stands between the network and the service: a limit on bodies, and counts of requests."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_DRAINED_BYTES = 100_000_000
"""Read and thrown away behind the limit: who is cut off while still sending does not see why."""
_CLIENT_LEFT = 499  # as nginx calls it


class BodyLimit:
    """Answers requests with larger bodies with 413, before the service holds them (ASGI)."""

    def __init__(self, app: App, *, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, num_bytes, more = bytearray(), 0, True
        while more and num_bytes <= self._max_bytes + _DRAINED_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            part = message.get("body", b"")
            num_bytes += len(part)
            if num_bytes <= self._max_bytes:
                body += part
            more = message.get("more_body", False)
        if num_bytes > self._max_bytes:
            await _refuse(send, f"the body has more than {self._max_bytes:,} bytes")
            return
        await self._app(scope, _replaying(bytes(body), receive), send)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read already, then what comes after it."""
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(send: Send, reason: str) -> None:
    content = json.dumps({"error": reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class Counted:
    """Tells the path, the status and the seconds of each request (ASGI)."""

    def __init__(self, app: App, *, tell: Callable[[str, int, float], None]) -> None:
        self._app, self._tell = app, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), _CLIENT_LEFT

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, seen)
        except Exception:
            status = 500
            raise
        finally:
            # Its pattern, not what was asked for: numbers of images would be a series each.
            route = getattr(scope.get("route"), "path", "none")
            self._tell(route, status, time.perf_counter() - began)
