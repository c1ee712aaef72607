"""An HTTP proxy in front of an S3 server that breaks answers as told."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = str | None
"""None (pass on), "503" (the request goes nowhere), "hang", "slow", "reset", "truncate", "surplus",
"no_length", "no_length_cut" or "short_length"."""
_SLOW_PIECES = 20


def reads(choose: Callable[[str, str], Fault]) -> Callable[[str, str], Fault]:
    """`choose` for reads of an object only; everything else is passed on."""

    def only_reads(method: str, path: str) -> Fault:
        is_read = method in ("GET", "HEAD") and "list-type" not in path
        return choose(method, path) if is_read else None

    return only_reads


class FaultyProxy:
    """Serves on a free port; `choose` picks the fault of each request by its method and path."""

    def __init__(self, upstream: str, choose: Callable[[str, str], Fault]) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.choose = choose
        self.faults: list[str] = []
        self.hang_s = 3.0
        self.slow_s = 3.0
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def _relay(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length) if length else None
        fault = self.owner.choose(self.command, self.path)
        if fault:
            self.owner.faults.append(fault)
        if fault == "503":
            self._head(503, [("Content-Type", "application/xml")], "0")
            return
        upstream = http.client.HTTPConnection(self.owner.upstream, timeout=30)
        upstream.request(self.command, self.path, sent, dict(self.headers))
        answer = upstream.getresponse()
        body = answer.read()
        headers = [
            (name, value)
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "content-length")
        ]
        size = answer.headers.get("Content-Length", str(len(body)))
        upstream.close()
        self._send(answer.status, headers, body, size, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _relay

    def _send(
        self, status: int, headers: list[tuple[str, str]], body: bytes, size: str, fault: Fault
    ) -> None:
        if fault == "short_length":
            body = body[: len(body) // 2]
            size = str(int(size) // 2)
        if fault == "surplus":
            body = body + b"surplus"
        unsized = fault in ("no_length", "no_length_cut", "surplus")
        self._head(status, headers, None if unsized else size)
        if self.command == "HEAD":
            return
        if fault == "slow":
            self._dribble(body)
            return
        cut = fault in ("reset", "truncate", "no_length_cut", "hang")
        self.wfile.write(body[: len(body) * 2 // 3] if cut else body)
        self.wfile.flush()
        if fault == "hang":
            time.sleep(self.owner.hang_s)
        if fault == "reset":
            # Closing with a zero linger time sends RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if fault:
            self.close_connection = True

    def _dribble(self, body: bytes) -> None:
        size = max(1, len(body) // _SLOW_PIECES)
        for start in range(0, len(body), size):
            self.wfile.write(body[start : start + size])
            self.wfile.flush()
            time.sleep(self.owner.slow_s / _SLOW_PIECES)

    def _head(self, status: int, headers: list[tuple[str, str]], size: str | None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if size is None:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", size)
        self.end_headers()
