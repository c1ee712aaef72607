"""What a run trains on: a Ray of several nodes, S3 behind a proxy that breaks answers, MLflow.

All of it is real, and all of it may be broken.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from faulty_proxy import Fault, FaultyProxy
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster
from servers import MlflowServer

from lotlip.data.scenes import make_sample
from lotlip.data.shards import CaptionCount, shard_name, write_dataset, write_shard
from lotlip.data.store import Store
from lotlip_platform.storage import READ_TIMEOUT_S, ensure_bucket, open_store

NUM_NODES = 3  # with a CPU each; two workers leave one to spare
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
NUM_SAMPLES, SHARD_SIZE = 1280, 160
BATCH = 32
BUCKET = "s3://faults"
EPISODE_S = 3.0


@dataclass
class Episode:
    """A while in which so many requests fail in one way; it ends once one has."""

    fault: str
    share: float
    began: float = field(default_factory=time.monotonic)
    num_broken: int = 0

    def is_for(self, method: str, path: str) -> bool:
        """Whether it can do anything to such a request."""
        is_head = method == "HEAD"
        if self.fault in ("503", "reset"):
            return self.fault == "503" or not is_head
        is_read = (is_head or method == "GET") and "list-type" not in path
        return is_read and (not is_head or "length" in self.fault)  # there is no body to cut


class S3:
    """What the proxy does to requests."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._episodes: list[Episode] = []

    def begin(self, fault: str, share: float) -> Episode:
        episode = Episode(fault, share)
        self._episodes = [*self._episodes, episode]
        return episode

    def attend(self, at_once: bool) -> None:
        now = time.monotonic()
        lasting = (e for e in self._episodes if not e.num_broken or now < e.began + EPISODE_S)
        self._episodes = [] if at_once else list(lasting)

    def choose(self, method: str, path: str) -> Fault:
        """For the proxy."""
        for episode in self._episodes:
            if episode.is_for(method, path) and self._rng.random() < episode.share:
                episode.num_broken += 1
                return episode.fault
        return None


class Rig:
    """The services of a run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.s3 = folder, S3(random.Random(seed))
        self._stack = ExitStack()
        self.nodes: list[Any] = []
        self.heal_mlflow: Callable[[], None] | None = None
        """What brings MLflow back, while it is away."""
        self.mlflow_back_at = 0.0

    def start(self) -> None:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        self._stack.callback(server.stop)
        host, port = server.get_host_and_port()
        direct = f"http://{host}:{port}"
        self.proxy = FaultyProxy(direct, self.s3.choose)
        self.proxy.hang_s = READ_TIMEOUT_S + 5  # or it would be a mere truncation
        self._stack.callback(self.proxy.stop)
        os.environ.update(
            AWS_ENDPOINT_URL=direct, AWS_ACCESS_KEY_ID="lotlip", AWS_SECRET_ACCESS_KEY="lotlip"
        )
        self.mlflow = MlflowServer(self.folder)
        self._stack.callback(self.mlflow.end)
        self.mlflow.wait_until_it_answers()
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._stack.callback(self._cluster.shutdown)
        for _ in range(NUM_NODES):
            self.add_node()
        self._cluster.wait_for_nodes()

    def stop(self) -> None:
        self._stack.close()
        for process in psutil.process_iter(["cmdline"]):  # training processes, and what they left
            if any(str(self.folder) in part for part in process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.Error):
                    process.kill()

    def add_node(self) -> None:
        self.nodes.append(self._cluster.add_node(**NODE))

    def kill_node(self, node_id: str) -> None:
        """The whole node: its raylet is killed outright, and its workers end with it."""
        (node,) = [node for node in self.nodes if node.node_id == node_id]
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def attend(self, *, at_once: bool = False) -> None:
        """Mend what has been broken for long enough."""
        self.s3.attend(at_once)
        if self.heal_mlflow and (at_once or time.monotonic() > self.mlflow_back_at):
            self.heal_mlflow()
            self.heal_mlflow = None

    def environment(self) -> dict[str, str]:
        """Of a training process. Its S3 is the proxy."""
        home = {"LOTLIP_HOME": str(self.folder / "home"), "OMP_WAIT_POLICY": "PASSIVE"}
        address = {"RAY_ADDRESS": self._cluster.address, "MLFLOW_TRACKING_URI": self.mlflow.url}
        return {**os.environ, **home, **address, "AWS_ENDPOINT_URL": self.proxy.url}

    def config(self, name: str, num_steps: int) -> dict[str, Any]:
        return {
            "name": name,
            "store": f"{BUCKET}/runs",
            "model": {"preset": "tiny"},
            "data": {
                "train": f"{BUCKET}/data",
                "order": {"num_streams": 4, "shuffle_window": 32},
                "max_bad_fraction": 0.5,
            },
            "train": {
                "num_samples": num_steps * BATCH,
                "global_batch": BATCH,
                "save_every_steps": 50,
                "log_every_steps": 10,
                "trace": True,
            },
            "cluster": {"num_workers": 2, "max_failures": 1000},
            "checkpoint": {"max_failed_saves": 10},
            "tracking": {"registered_model": ""},
        }


class Trainee:
    """A training process, started again whenever it has ended before its time."""

    def __init__(self, rig: Rig, name: str, num_steps: int) -> None:
        self._rig = rig
        self._config = rig.folder / f"{name}.json"
        self._config.write_text(json.dumps(rig.config(name, num_steps)))
        self._file = rig.folder / f"{name}.events.jsonl"
        self._file.touch()
        self._read = 0
        self.events: list[dict[str, Any]] = []
        self.highest = 0
        """The last step so far."""
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("trainee.py"))]
        self.process = subprocess.Popen(
            [*command, str(self._config), str(self._file)],
            env=self._rig.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def look(self) -> list[dict[str, Any]]:
        """What was told since the last look."""
        with self._file.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self._read += len(lines)
        new = [json.loads(line) for line in lines.splitlines()]
        self.events += new
        steps = [event["step"] for event in new if event["kind"] == "step"]
        self.highest = max([self.highest, *steps])
        return new

    def workers(self) -> list[dict[str, Any]]:
        """`pid` and `node` of those that live, and aren't frozen."""
        born = {event["rank"]: event for event in self.events if event["kind"] == "born"}
        return [event for event in born.values() if _is_at_work(event["pid"])]

    @property
    def last_words(self) -> str:
        """What it told last, for people."""
        return " | ".join([event["text"] for event in self.events if "text" in event][-5:])

    def wait(self, timeout_s: float) -> int:
        """Its exit code."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        self.look()
        return self.process.wait(1)


def _is_at_work(pid: int) -> bool:
    """Whether it is a process of Ray, as the number may be another's by now, and not frozen."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        is_ours = any("ray::" in part for part in process.cmdline())
        return is_ours and process.status() != psutil.STATUS_STOPPED
    return False


def write_data(store: Store, rng: random.Random, num_damaged: int) -> dict[str, int]:
    """Scenes in shards, so many of them damaged; how many by kind of damage."""
    kinds = ["corrupt JPEG", "corrupt JSON", "corrupt tar"]
    damages = [kinds[number % len(kinds)] for number in range(num_damaged)]
    places = dict(zip(rng.sample(range(NUM_SAMPLES), num_damaged), damages, strict=True))
    written = []
    for first in range(0, NUM_SAMPLES, SHARD_SIZE):
        samples = [make_sample(0, place) for place in range(first, first + SHARD_SIZE)]
        count = CaptionCount()
        for sample in samples:
            count.add(sample)
        name = shard_name(first // SHARD_SIZE)
        written.append((write_shard(store, name, samples), count))
        content = bytearray(store.read(name))
        for place, sample in enumerate(samples, first):
            if place in places:
                _damage(content, sample.key.encode(), places[place])
        store.write(name, bytes(content))
    write_dataset(store, written, {"command": "faults"})
    return {kind: damages.count(kind) for kind in kinds}


def _damage(tar: bytearray, key: bytes, kind: str) -> None:
    """As a disk or a network that turns bits: the length stays."""
    image, text = (tar.index(key + suffix) for suffix in (b".jpg", b".json"))
    if kind == "corrupt JPEG":
        tar[image + 512 : image + 1024] = bytes(512)
    elif kind == "corrupt JSON":
        tar[text + 512 : text + 520] = b"{{{{{{{{"
    else:
        tar[image : image + 256] = b"\xff" * 256  # the header


@contextmanager
def rig(folder: Path, seed: int, num_damaged: int) -> Iterator[tuple[Rig, dict[str, int]]]:
    """Everything started, with data; and the damages in it, by kind."""
    made = Rig(folder, seed)
    try:
        made.start()
        ensure_bucket(BUCKET)
        yield made, write_data(open_store(f"{BUCKET}/data"), random.Random(seed), num_damaged)
    finally:
        made.stop()
