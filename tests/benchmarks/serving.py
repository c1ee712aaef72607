"""A served model against MLflow's own server, asked by the same clients: requests a second."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import ray
from loading import NUM_SAMPLES, Scenes
from measuring import in_new_process
from servers import free_port
from whole_run import served

from lotlip.data.scenes import CAPTIONER, make_sample
from lotlip.export import save
from lotlip.model import PRESETS, LoTLIP
from lotlip_platform.registry import register
from lotlip_platform.serve_config import ServeConfig
from lotlip_platform.serving import serving
from lotlip_platform.tracking import connect

WARM_UP_S, MEASURED_S = 2.0, 8.0
MANY = 16
NAME = "bench-served"


@dataclass(frozen=True)
class Asked:
    """How one kind of request was answered."""

    what: str
    clients: int
    per_s: float
    p50_ms: float
    p95_ms: float


def measured(scenes: Scenes) -> list[Asked]:
    """Ours in three ways and MLflow's server, each with one client and with many."""
    texts = [make_sample(3, index).long[CAPTIONER] for index in range(256)]
    found: list[Asked] = []
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as uri:
        version = registered(scenes, Path(folder) / "model", uri)
        for what, batch, environment in (
            ("lotlip serve", 128, {}),
            ("the same, each request by itself (max_batch_items=1)", 1, {}),
            ("the same, RAY_SERVE_ENABLE_HA_PROXY=1", 128, {"RAY_SERVE_ENABLE_HA_PROXY": "1"}),
        ):
            with mock.patch.dict(os.environ, {"MLFLOW_TRACKING_URI": uri, **environment}):
                # Ray Serve reads its settings when it is imported.
                found += in_new_process(ours, what, version, scenes.store.uri, texts, batch)
        with mlflow_serving(version, uri) as port:
            asked = ("/invocations", lambda text: {"dataframe_records": [{"text": text}]})
            found += rows("mlflow models serve, a text embedded", port, texts, *asked)
    return found


def ours(what: str, version: str, data: str, texts: list[str], max_batch_items: int) -> list[Asked]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    config = ServeConfig(port=free_port(), max_batch_items=max_batch_items)
    with serving(version, data, config):
        embedded = (f"{what}, a text embedded", "/v1/embed", lambda text: {"texts": [text]})
        found = (f"{what}, a search", "/v1/search", lambda text: {"text": text})
        return [
            row
            for name, path, body in (embedded, found)
            for row in rows(name, config.port, texts, path, body)
        ]


def registered(scenes: Scenes, folder: Path, uri: str) -> str:
    config = PRESETS["small"]
    save(LoTLIP(config, scenes.tokenizer(config)).eval(), folder)
    server = connect(uri)
    run_id = server.client.create_run("0").info.run_id
    return f"models:/{NAME}/{register(server, run_id, str(folder), name=NAME)}"


@contextmanager
def mlflow_serving(version: str, uri: str) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", version]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    bin_folder = str(Path(sys.executable).parent)  # it starts "uvicorn" by name
    path = os.pathsep.join([bin_folder, os.environ["PATH"]])
    # One thread, as a replica of ours has.
    ours = {"PATH": path, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": uri}
    environment = {**os.environ, **ours}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    try:
        wait_for(port)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.2)
    raise AssertionError(f"nothing at port {port}")


def rows(
    what: str, port: int, texts: list[str], path: str, body: Callable[[str], Any]
) -> list[Asked]:
    return [asked(what, port, texts, path, body, clients) for clients in (1, MANY)]


def asked(
    what: str, port: int, texts: list[str], path: str, body: Callable[[str], Any], clients: int
) -> Asked:
    """Clients that each ask for the next as soon as they are answered."""
    begins = time.perf_counter() + WARM_UP_S
    ends = begins + MEASURED_S
    seconds: list[float] = []

    def ask(client: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        number = client
        while time.perf_counter() < ends:
            content = json.dumps(body(texts[number % len(texts)]))
            began = time.perf_counter()
            connection.request("POST", path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            if began >= begins:
                seconds.append(time.perf_counter() - began)
            number += clients

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    p50_ms, p95_ms = 1000 * np.percentile(seconds, [50, 95])
    return Asked(what, clients, len(seconds) / MEASURED_S, p50_ms, p95_ms)


def section(found: list[Asked]) -> list[str]:
    """In Markdown."""
    theirs = {row.clients: row.per_s for row in found if row.what.startswith("mlflow")}
    return [
        "## Serving",
        "",
        f"Preset small, long captions of scenes, an index of {NUM_SAMPLES:,} images, one replica",
        "on one thread; clients and server share two cores. Each client asks for the next as soon",
        "as it is answered; wall time. The yardstick is `mlflow models serve` of the same version,",
        "which can't search: that is the description and each of its sentences embedded.",
        "",
        "| what | clients | requests/s | of the yardstick | p50, ms | p95, ms |",
        "|---|---|---|---|---|---|",
        *(_line(row, theirs[row.clients]) for row in found),
        "",
        "With one client most of the time is Ray Serve's proxy, which is Python; HAProxy is what",
        "Ray has in its place. That setting must be in the environment of all of Ray's processes.",
        "HAProxy shows its own pages on ports 8404 and 9101 of all interfaces, which is why",
        "`lotlip up` does not set it.",
    ]


def _line(row: Asked, theirs_per_s: float) -> str:
    ratio = "-" if row.what.endswith("a search") else f"{row.per_s / theirs_per_s:.2f}x"
    return (
        f"| {row.what} | {row.clients} | {row.per_s:.0f} | {ratio} "
        f"| {row.p50_ms:.1f} | {row.p95_ms:.1f} |"
    )


if __name__ == "__main__":
    from lotlip.data.store import FolderStore

    with tempfile.TemporaryDirectory() as where:
        print("\n".join(section(measured(Scenes(FolderStore(where))))))
