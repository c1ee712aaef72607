"""A cluster of several hosts, whose cables can be cut: store and tracking, head, two workers, and
the laptop that submits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import Host, hosts, reason_to_skip

REASON = reason_to_skip()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.timeout(900),
]
BIN = Path(sys.executable).parent
SMALL = (
    *("data.train=s3://lotlip/small/train", "eval.data=s3://lotlip/small/validation"),
    *("scenes.uri=s3://lotlip/small", "scenes.num_train=640", "scenes.num_validation=100"),
    *("data.features=", "eval.num_samples=100", "train.num_samples=10240", "train.trace=true"),
    *("train.eval_every_steps=0", "train.save_every_steps=5", "tracking.registered_model="),
)
STEPS = 80


@dataclass(frozen=True)
class Cluster:
    head: Host
    workers: list[Host]
    laptop: Host

    def lotlip(self, *arguments: str) -> str:
        """What a command says on the laptop."""
        done = self.laptop.run(str(BIN / "lotlip"), *arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def submit(self, *arguments: str) -> str:
        return self.lotlip("jobs", "submit", "train", "train/scenes", *SMALL, *arguments).strip()

    def wait_for(self, id: str, line: str, *arguments: str) -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            # Of a worker there may be no log yet.
            said = self.laptop.run(str(BIN / "lotlip"), "jobs", "logs", id, *arguments).stdout
            if re.search(line, said):
                return
            time.sleep(1)
        raise AssertionError(f"no {line} in: {said}")

    def state(self, id: str) -> str:
        return json.loads(self.lotlip("jobs", "status", id, "--json"))["state"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    services = "10.77.0.1"
    environment = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
        "AWS_ENDPOINT_URL": f"http://{services}:9000",
        "AWS_ACCESS_KEY_ID": "lotlip",
        "AWS_SECRET_ACCESS_KEY": "lotlip",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_TRACKING_URI": f"http://{services}:5000",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": "http://head:8265",
    }
    names = ["services", "head", "worker1", "worker2", "laptop"]
    started: list[subprocess.Popen[bytes]] = []
    with hosts(names, tmp_path_factory.mktemp("hosts"), environment) as (store, head, *others):
        *workers, laptop = others
        try:
            python = [sys.executable, "-P", "-m"]
            started.append(store.start(*python, "moto.server", "-H", "0.0.0.0", "-p", "9000"))
            started.append(
                store.start(
                    *(*python, "mlflow", "server", "--host", "0.0.0.0", "--workers", "1"),
                    *("--backend-store-uri", "sqlite:////tmp/mlflow.db"),
                    *("--artifacts-destination", "/tmp/artifacts"),
                )
            )
            ray = str(BIN / "ray")
            common = ["--block", "--object-store-memory=200000000"]
            own = f"--node-ip-address={head.address}"
            wide = ["--dashboard-host=0.0.0.0", "--num-cpus=0"]
            started.append(head.start(ray, "start", "--head", own, *wide, *common))
            for worker in workers:
                # As Kubernetes does: a node that Ray has given up is started anew.
                join = f"{ray} start --address=head:6379 --node-ip-address={worker.address} "
                join += f"--num-cpus=1 {' '.join(common)}"
                started.append(worker.start("sh", "-c", f"while true; do {join}; sleep 1; done"))
            made = Cluster(head, workers, laptop)
            _await_store(laptop)
            yield made
        finally:
            for process in started:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _await_store(laptop: Host) -> None:
    """Until S3 answers, and has the bucket."""
    code = "from lotlip_platform.storage import ensure_bucket; ensure_bucket('s3://lotlip')"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if laptop.run(sys.executable, "-c", code).returncode == 0:
            return
    raise AssertionError("no S3 server")


def _eventually(look: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline
        time.sleep(1)


def test_a_run_whose_workers_cable_is_cut_ends_as_one_that_was_left_alone(
    cluster: Cluster,
) -> None:
    def is_up() -> bool:
        done = cluster.laptop.run(str(BIN / "lotlip"), "doctor", "--address", "http://head:8265")
        return "2 x 1 CPUs" in done.stdout and "all-reduce of 64 MiB between 2" in done.stdout

    _eventually(is_up)
    undisturbed = cluster.submit("name=undisturbed")
    cluster.wait_for(undisturbed, r"run      [0-9a-f]{32} at http://10\.77\.0\.1:5000")

    cut = cluster.submit("name=cut")
    cluster.wait_for(cut, f"step 10 of {STEPS}", "--rank", "1")
    worker = cluster.workers[1]
    worker.unplug()
    try:
        cluster.wait_for(cut, "starting them again")
    finally:
        worker.plug()
    cluster.wait_for(cut, rf"resuming at step [1-9]\d* of {STEPS}")
    cluster.wait_for(cut, r"run      [0-9a-f]{32} at http://10\.77\.0\.1:5000")
    _eventually(lambda: cluster.state(cut) == "succeeded")

    weights = [
        re.findall(r"weights ([0-9a-f]{16})", cluster.lotlip("jobs", "logs", id))
        for id in (undisturbed, cut)
    ]
    assert weights[0] == weights[1]
    assert weights[0]
    runs = [f"s3://lotlip/runs/{name}" for name in ("undisturbed", "cut")]
    assert str(STEPS) in cluster.lotlip("trace", "diff", *runs)
    # Both lives, and both on two machines: the second with the one that was plugged in again.
    both = [cluster.lotlip("jobs", "logs", cut, "--rank", rank) for rank in ("0", "1")]
    assert min(sum(log.count(f"on worker{n}") for log in both) for n in (1, 2)) >= 2
