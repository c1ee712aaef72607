"""A web of images on this machine, with all that the web does to those who fetch them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ImageServer:
    """Serves images by path; paths of other kinds misbehave, see `_answer`."""

    def __init__(self, images: Mapping[str, bytes], *, seconds: float = 0.0) -> None:
        self.images, self._seconds = images, seconds
        self.asked: Counter[str] = Counter()
        self.times_s: list[float] = []
        self.most_in_flight = 0
        self._in_flight, self._lock = 0, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                with outer._lock:
                    outer.asked[self.path] += 1
                    outer.times_s.append(time.monotonic())
                    outer._in_flight += 1
                    outer.most_in_flight = max(outer.most_in_flight, outer._in_flight)
                try:
                    time.sleep(outer._seconds)
                    outer._answer(self)
                finally:
                    with outer._lock:
                        outer._in_flight -= 1

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # who asked has gone

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        kind, _, name = handler.path.lstrip("/").partition("/")
        image = self.images.get(name, b"")
        first = self.asked[handler.path] == 1
        if kind == "ok" and image:
            _send(handler, 200, image)
        elif kind == "moved":
            _send(handler, 302, b"", Location=f"/ok/{name}")
        elif kind == "round":
            _send(handler, 302, b"", Location=handler.path)
        elif kind == "inside":
            _send(handler, 302, b"", Location="http://169.254.169.254/latest/meta-data")
        elif kind == "busy":
            _send(handler, 503, b"") if first else _send(handler, 200, image)
        elif kind == "later":
            _send(handler, 429, b"", **{"Retry-After": "1"}) if first else _send(
                handler, 200, image
            )
        elif kind == "away":
            _send(handler, 429, b"", **{"Retry-After": "3600"})
        elif kind == "cut":
            _send(handler, 200, image[: len(image) // 2], size=len(image) if first else None)
        elif kind == "slow":
            time.sleep(3)
            _send(handler, 200, image)
        elif kind == "noai":
            _send(handler, 200, image, **{"X-Robots-Tag": "otherbot: noindex, noai"})
        elif kind == "page":
            _send(handler, 200, b"<html>gone</html>")
        else:
            _send(handler, 404, b"")


def _send(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    size: int | None = None,
    **headers: str,
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if size is None else size))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
    if size is not None:
        handler.close_connection = True
