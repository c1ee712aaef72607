"""Training on a Ray of several nodes, on this one machine, that come and go."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from servers import free_port

from lotlip.data.scenes import make_sample
from lotlip.data.shards import CaptionCount, write_dataset, write_shard
from lotlip.data.store import FolderStore
from lotlip_platform.cluster import beside_driver
from lotlip_platform.config import build_config
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.train import train
from lotlip_platform.train_config import TrainConfig

pytestmark = pytest.mark.slow
# Of a dashboard's port that is taken Ray leaves a socket open, even where it is to start none.
HEAD = {"num_cpus": 0, "include_dashboard": False, "dashboard_port": free_port()}
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head, where the driver is, and three nodes with a CPU each."""
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    for _ in range(3):
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def write_data(folder: Path) -> None:
    """256 scenes."""
    store, count = FolderStore(folder), CaptionCount()
    samples = [make_sample(0, place) for place in range(256)]
    for sample in samples:
        count.add(sample)
    write_dataset(store, [(write_shard(store, "shard.tar", samples), count)], {})


def config_of(folder: Path, *, num_steps: int, **cluster: Any) -> TrainConfig:
    """A run of the tiny preset, called run, that saves every 50 steps."""
    values = {
        "name": "run",
        "store": str(folder),
        "model": {"preset": "tiny"},
        "data": {"train": str(folder / "data")},
        "train": {
            "num_samples": 32 * num_steps,
            "global_batch": 32,
            "save_every_steps": 50,
            "trace": True,
        },
        "cluster": cluster,
        "tracking": {"registered_model": ""},
    }
    return build_config(TrainConfig, values)


def test_a_run_leaves_a_node_that_is_drained_and_loses_nothing(cluster: Cluster, tmp_path: Path):
    write_data(tmp_path / "data")
    config = config_of(tmp_path, num_steps=400, num_workers=2, max_failures=0)
    lives: list[set[str]] = []
    drained: list[str] = []
    steps: list[int] = []
    notes: list[str] = []

    def drain_a_node(event: dict[str, Any]) -> None:
        if event["kind"] == "born":
            if not lives or len(lives[-1]) == 2:
                lives.append(set())
            lives[-1].add(event["node"])
        if event["kind"] == "note":
            notes.append(event["text"])
        if event["kind"] == "step":
            steps.append(event["step"])
            if event["step"] == 20 and not drained:
                drained.append(min(lives[0]))
                why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
                where = ["--address", cluster.address, "--node-id", drained[0]]
                subprocess.run([RAY, "drain-node", *where, *why], check=True, timeout=60)

    train(config, drain_a_node)
    assert len(lives) == 2
    assert drained[0] not in lives[1]
    assert any("Ray drains a machine" in note for note in notes)
    assert steps == list(range(1, 401)), "no step is done twice"
    traced = [step.step for step in RunFolder(FolderStore(tmp_path / "run")).read_trace()]
    assert traced == steps


def test_a_run_takes_the_machines_that_come_and_goes_on_without_those_that_die(
    tmp_path: Path,
):
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        write_data(tmp_path / "data")
        config = config_of(tmp_path, num_steps=1500, num_workers=[1, 2])
        numbers: list[int] = []
        steps: list[int] = []
        added: list[Any] = []

        def come_and_go(event: dict[str, Any]) -> None:
            if event["kind"] == "note" and event["text"].endswith(" workers"):
                numbers.append(int(event["text"].split()[0]))
            if event["kind"] == "step":
                steps.append(event["step"])
                if event["step"] >= 20 and not added:
                    added.append(cluster.add_node(**node))
                if numbers[-1] == 2 and len(added) == 1 and event["step"] % 10 == 5:
                    cluster.remove_node(added[0], allow_graceful=False)
                    added.append(None)

        train(config, come_and_go)
        assert numbers[0] == 1
        assert numbers[1] == 2
        assert numbers[-1] == 1
        assert set(steps) == set(range(1, 1501))
        traced = [step.step for step in RunFolder(FolderStore(tmp_path / "run")).read_trace()]
        assert traced == list(range(1, 1501))
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_what_the_driver_needs_is_where_the_driver_is(cluster: Cluster):
    @ray.remote(num_cpus=0)
    class Place:
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    places = [Place.options(scheduling_strategy=beside_driver()).remote() for _ in range(6)]
    here = ray.get_runtime_context().get_node_id()
    assert ray.get([place.node.remote() for place in places]) == [here] * 6
