"""A server that speaks OpenAI's API and describes scenes, with faults where it is told to.

What it says is a function of the image and the prompt, as greedy decoding's is. Run as a program it
serves until it is killed: python caption_server.py PORT [SECONDS_PER_ANSWER]
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tests/describer"
_THINGS = ("castle", "boat", "tree", "car", "fish", "house", "rocket", "cat", "bird", "mug")
_COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "white"]

Fault = Callable[["Asked"], "tuple[int, dict[str, str], bytes] | None"]
"""Gives what to answer instead: status, headers, body; None for the usual answer. Of status 0: the
connection is closed."""


class Asked:
    """A request that came in."""

    def __init__(self, body: dict[str, Any], number: int, nth: int) -> None:
        self.body = body
        self.number = number
        """Among all, from 1."""
        self.nth = nth
        """Among those with the same image and prompt, from 1."""
        content = body["messages"][-1]["content"]
        self.image = content[0]["image_url"]["url"]
        self.prompt = content[1]["text"]

    @property
    def what(self) -> str:
        return hashlib.sha256(f"{self.image} {self.prompt}".encode()).hexdigest()


def describe(what: str) -> str:
    """Three sentences, others for each hexadecimal digest."""
    picks = bytes.fromhex(what)
    thing = [_THINGS[b % len(_THINGS)] for b in picks[:4]]
    colour = [_COLOURS[b % len(_COLOURS)] for b in picks[4:8]]
    return (
        f"The image shows a {colour[0]} {thing[0]} in front of a wide and quiet landscape. "
        f"To its left there is a small {colour[1]} {thing[1]}, and behind it a {colour[2]} "
        f"{thing[2]}. A {colour[3]} {thing[3]} can be seen far away, number {what[:6]}."
    )


def answer(text: str, *, finish: str = "stop", choices: int = 1) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {"index": i, "message": message, "finish_reason": finish} for i in range(choices)
        ],
        "usage": {
            "prompt_tokens": 600,
            "completion_tokens": len(text.split()),
            "total_tokens": 600 + len(text.split()),
        },
    }


class CaptionServer:
    """On a port of its own, in threads of this process."""

    def __init__(self, *, port: int = 0, seconds: float = 0.0, fault: Fault | None = None) -> None:
        self.fault, self._seconds = fault, seconds
        self.asked: list[Asked] = []
        """All of them, in the order in which they came."""
        self.most_in_flight = 0
        self._in_flight, self._lock = 0, threading.Lock()
        self._seen: Counter[str] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                model = {"id": MODEL, "object": "model", "created": 1}
                self._send(200, {}, json.dumps({"object": "list", "data": [model]}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._send(*outer.answer(body))

            def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.close_connection = not status
                if not status:
                    return
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # who asked has given up

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # who asked has gone

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        with self._lock:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            asked = Asked(body, len(self.asked) + 1, 0)
            self._seen[asked.what] += 1
            asked.nth = self._seen[asked.what]
            self.asked.append(asked)
        try:
            time.sleep(self._seconds)
            if self.fault is not None and (instead := self.fault(asked)) is not None:
                return instead
            return 200, {}, json.dumps(answer(describe(asked.what))).encode()
        finally:
            with self._lock:
                self._in_flight -= 1

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


if __name__ == "__main__":
    server = CaptionServer(port=int(sys.argv[1]), seconds=float(sys.argv[2]))
    print(server.url, flush=True)
    threading.Event().wait()
