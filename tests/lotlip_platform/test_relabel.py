"""A data set with new captions, on a real local Ray."""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
import ray
from caption_server import MODEL, CaptionServer, describe

from lotlip.configuration import from_dict
from lotlip.data.manifest import read_manifest
from lotlip.data.shards import read_samples
from lotlip.data.store import FolderStore
from lotlip.errors import ClusterError, ConfigError, DataError
from lotlip.relabel.huggingface import HuggingFaceConfig
from lotlip_platform import captioners
from lotlip_platform.captioners import check_captioner
from lotlip_platform.dataset_checks import check
from lotlip_platform.datasets import make_scenes
from lotlip_platform.endpoint import EndpointConfig
from lotlip_platform.local_services import local_tracking_uri
from lotlip_platform.mailbox import Mailbox
from lotlip_platform.ray_data import Unseen
from lotlip_platform.relabel import Relabelled, relabel
from lotlip_platform.relabel_asking import Work
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.relabel_pool import ShardActor
from lotlip_platform.relabel_trial import try_out
from lotlip_platform.shard_ledger import ShardLedger
from lotlip_platform.storage import open_store

pytestmark = pytest.mark.usefixtures("mlflow_file")

Event = dict[str, Any]
NUM_SAMPLES = 200


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("source") / "scenes")
    make_scenes(folder, num_samples=NUM_SAMPLES, shard_size=50, on_progress=lambda *_: None)
    return folder


@pytest.fixture
def server() -> Iterator[CaptionServer]:
    server = CaptionServer(seconds=0.02)
    yield server
    server.end()


@pytest.fixture
def config(server: CaptionServer, source: str, tmp_path: Path) -> RelabelConfig:
    given = {
        "name": "described",
        "store": str(tmp_path / "runs"),
        "source": source,
        "target": str(tmp_path / "target"),
        "captioner": {
            "name": "describer",
            "endpoint": {"url": server.url, "model": MODEL, "concurrency": 8, "revision": "r7"},
        },
        "account": {"price_per_million_input_tokens": 2.0, "num_endpoint_gpus": 1.0},
        "cluster": {"num_workers": 2},
    }
    return from_dict(RelabelConfig, given)


def quiet(event: Event) -> None:
    pass


def check_target(config: RelabelConfig, result: Relabelled, server: CaptionServer) -> None:
    """Each sample once, each with its own caption."""
    assert check(config.target, lambda *_: None).problems == []
    store = open_store(config.target)
    samples = list(read_samples(store, read_manifest(store)))
    source = open_store(config.source)
    keys = [sample.key for sample in read_samples(source, read_manifest(source))]
    assert [sample.key for sample in samples] == keys
    captions = {sample.long["describer"] for sample in samples}
    assert captions == {describe(asked.what) for asked in server.asked}
    assert len(captions) == NUM_SAMPLES
    assert (result.tally.num_captions, result.tally.num_samples) == (NUM_SAMPLES, NUM_SAMPLES)


def test_with_a_worker_killed_on_the_way_a_data_set_is_captioned_told_and_accounted_for(
    config: RelabelConfig, server: CaptionServer
):
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while len(server.asked) < 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in psutil.process_iter(["cmdline"]):
            if any("ShardActor" in part for part in process.info["cmdline"] or ()):
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)
                return

    events: list[Event] = []
    thread = threading.Thread(target=kill)
    thread.start()
    result = relabel(config, events.append)
    thread.join()
    assert killed
    check_target(config, result, server)
    asked = Counter(one.what for one in server.asked)
    assert len(asked) == NUM_SAMPLES
    assert asked.total() - NUM_SAMPLES <= config.captioner.endpoint.concurrency
    assert repr(Unseen({"OPENAI_API_KEY": "secret"})) == "Unseen()", "nor does Ray Data tell it"
    told = [event for event in events if event["kind"] == "captioned"]
    assert (told[-1]["done"], told[-1]["total"]) == (NUM_SAMPLES, NUM_SAMPLES)
    assert "captions/s" in told[-1]["note"]
    manifest = read_manifest(open_store(config.target))
    assert manifest.digest == result.digest
    assert manifest.captions["long.describer"]["num"] == NUM_SAMPLES
    made_by = manifest.made_by
    assert (made_by["command"], made_by["model"], made_by["revision"]) == ("relabel", MODEL, "r7")
    assert made_by["source_made_by"]["command"] == "data scenes"
    assert made_by["prompts"]["texts"] == config.prompts.texts
    assert result.account["relabel/cost"] == pytest.approx(NUM_SAMPLES * 600 * 2e-6)
    assert result.account["relabel/gpu_hours"] > 0

    client = mlflow.MlflowClient(local_tracking_uri())
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["relabel/num_captions"] == NUM_SAMPLES
    assert run.data.params["captioner.endpoint.model"] == MODEL
    assert run.data.tags["captioned_manifest"] == result.digest
    assert {file.path for file in client.list_artifacts(result.run_id)} == {
        *("config.yaml", "result.json")
    }

    again = relabel(config, events.append)
    assert again == result
    assert "nothing to caption" in events[-1]["text"]
    with pytest.raises(ConfigError, match=r"another captioner\.endpoint\.model"):
        relabel(_with(config, model="other"), quiet)


def _with(config: RelabelConfig, **endpoint: Any) -> RelabelConfig:
    captioner = config.captioner
    changed = dataclasses.replace(captioner.endpoint, **endpoint)
    return dataclasses.replace(config, captioner=dataclasses.replace(captioner, endpoint=changed))


def test_a_shard_that_kills_its_workers_is_given_up(config: RelabelConfig, server: CaptionServer):
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    shard = read_manifest(open_store(config.source)).shards[0]
    for _ in range(4):
        ray.get(mailbox.begin.remote(f"{shard.name} 0"))
    worker = ShardActor(Work(config=config, folder="", revision=""), mailbox, Unseen({}), None)
    row = np.array([json.dumps(dataclasses.asdict(shard))], dtype=object)
    told = worker({"shard": row}).to_pylist()[0]
    assert told["kind"] == "ClusterError"
    assert "shard-000000.tar has cost 4 workers their lives" in told["text"]
    assert not server.asked


def test_what_an_earlier_run_committed_is_not_asked_again(
    config: RelabelConfig, server: CaptionServer
):
    refused = b'{"error": {"message": "enough for today"}}'
    server.fault = lambda asked: (401, {}, refused) if asked.number > 130 else None
    one = dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, num_workers=1))
    with pytest.raises(ConfigError, match=r"refuses the requests \(401.*enough for today"):
        relabel(one, quiet)
    folder = ShardLedger(FolderStore(f"{config.store}/{config.name}"))
    assert len(folder.entries()) == 2
    with pytest.raises(DataError, match=r"no manifest"):
        read_manifest(open_store(config.target))
    server.fault = None
    before = len(server.asked)
    gone = Path(config.target) / "shard-000001.tar"
    gone.unlink()
    events: list[Event] = []
    result = relabel(config, events.append)
    check_target(config, result, server)
    again = len(server.asked) - before - (NUM_SAMPLES - 130) - 50
    assert 0 <= again <= config.captioner.endpoint.concurrency, "those that were in flight"
    told = [event["text"] for event in events if event["kind"] == "note"]
    assert any("lacks shard-000001.tar and 0 more" in text for text in told)
    gone.unlink()
    with pytest.raises(DataError, match="no longer holds what it wrote"):
        relabel(config, quiet)


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"source": "/nowhere"}, DataError, "/nowhere has no manifest"),
        ({"target": "SOURCE/../scenes2"}, DataError, "holds another data set"),
        ({"captioner.name": "scenes"}, ConfigError, "has captions by scenes already"),
        ({"endpoint.model": "other"}, ConfigError, "has no model 'other'; it has: tests/describer"),
        ({"endpoint.url": "http://127.0.0.1:9/v1"}, ClusterError, "can't be reached"),
        ({"cluster.num_workers": 7}, ClusterError, "cluster.num_workers=7 with 1 CPUs each"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_written(
    config: RelabelConfig, source: str, tmp_path: Path, change: Event, error: Any, text: str
):
    ((key, value),) = change.items()
    if key == "target":
        value = str(tmp_path / "other")
        make_scenes(value, num_samples=2, on_progress=lambda *_: None)
    if key.startswith("endpoint."):
        wrong = _with(config, **{key.partition(".")[2]: value})
    elif key == "captioner.name":
        captioner = dataclasses.replace(config.captioner, name=value)
        wrong = dataclasses.replace(config, captioner=captioner)
    elif key == "cluster.num_workers":
        pool = dataclasses.replace(config.cluster, num_workers=value)
        wrong = dataclasses.replace(config, cluster=pool)
    else:
        wrong = dataclasses.replace(config, **{key: value})
    with pytest.raises(error, match=text) as raised:
        relabel(wrong, quiet)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "runs" / "described" / "config.json").exists()
    assert not (tmp_path / "target").exists()


def test_a_run_goes_on_with_the_revision_it_was_begun_by(
    config: RelabelConfig, monkeypatch: pytest.MonkeyPatch
):
    """The hub can't be reached from here: what it would be asked for is what counts."""
    asked: list[str] = []
    monkeypatch.setattr(
        captioners, "revision_of", lambda model, revision, key: asked.append(revision) or "c2"
    )
    model = HuggingFaceConfig(model="llava-hf/llava")
    captioner = dataclasses.replace(config.captioner, huggingface=model, endpoint=EndpointConfig())
    of_hub = dataclasses.replace(config, captioner=captioner)
    for known in ("", "c1", "sha256:1"):
        check_captioner(of_hub, known)
    assert asked == ["", "c1", ""]


def test_a_few_captions_are_shown_before_all_are_paid_for(
    config: RelabelConfig, server: CaptionServer, tmp_path: Path
):
    picture = try_out(config, num_samples=3)
    assert picture.startswith(b"\x89PNG")
    assert len(server.asked) == 3
    assert not (tmp_path / "runs").exists()
