from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lotlip.data.scenes import make_sample
from lotlip.data.shards import CaptionCount, write_dataset, write_shard
from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError, LotlipError
from lotlip_platform.cli import main
from lotlip_platform.config import build_config
from lotlip_platform.profiling import profile_training, table
from lotlip_platform.train_config import TrainConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """96 scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    store, count = FolderStore(folder), CaptionCount()
    samples = [make_sample(0, place) for place in range(96)]
    for sample in samples:
        count.add(sample)
    write_dataset(store, [(write_shard(store, "shard.tar", samples), count)], {})
    return str(folder)


def config_of(data: str) -> TrainConfig:
    values = {
        "name": "profiled",
        "model": {"preset": "tiny"},
        "data": {"train": data, "order": {"num_streams": 4, "shuffle_window": 16}},
        "train": {"num_samples": 64, "global_batch": 32},
        "cluster": {"num_workers": 2},
    }
    return build_config(TrainConfig, values)


def test_the_parts_of_a_step_add_up_to_it(data: str, tmp_path: Path):
    events: list[dict[str, Any]] = []
    trace = tmp_path / "new" / "trace.json"
    found = profile_training(config_of(data), trace, num_steps=4, on_event=events.append)
    shares = {share.what: share for share in found.shares}
    assert shares.keys() >= {"data", "image tower", "text tower", "loss", "backward", "optimiser"}
    assert all(share.seconds > 0 for name, share in shares.items() if name != "rest")
    assert sum(share.share for share in found.shares) == pytest.approx(1.0, abs=0.02)
    assert shares["backward"].seconds > shares["loss"].seconds
    assert found.samples_per_s == pytest.approx(16 / found.step_s)  # one worker's share of 32
    assert found.flops_per_s > 1e6
    assert found.mfu == 0.0
    assert [event["step"] for event in events] == [1, 2, 3, 4]
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert names >= {"text tower", "backward"}
    assert "backward" in table(found)


def test_one_of_as_many_workers_as_there_are_streams_can_be_profiled(data: str, tmp_path: Path):
    config = config_of(data)
    config = replace(config, cluster=replace(config.cluster, num_workers=(3, 8)))
    found = profile_training(config, tmp_path / "t.json", num_steps=1, on_event=print)
    assert found.samples_per_s == pytest.approx(8 / found.step_s)  # four fit: 32 / 4


def test_the_command_prints_a_table_or_json(data: str, tmp_path: Path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"name": "x", "model": {"preset": "tiny"}}))
    arguments = [str(path), f"data.train={data}", "train.num_samples=64", "train.global_batch=32"]
    arguments += ["data.order.num_streams=4", "--steps", "2", "--trace", str(tmp_path / "t.json")]
    assert main(["profile", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "part of a step" in shown
    assert f"trace: {tmp_path / 't.json'}" in shown
    assert main(["profile", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples_per_s"] > 0


def test_what_cannot_be_profiled_is_told(data: str, tmp_path: Path):
    config = config_of(data)
    with pytest.raises(ConfigError, match="--steps 0 must be 1 or more"):
        profile_training(config, tmp_path / "t.json", num_steps=0, on_event=print)
    (tmp_path / "file").write_text("")
    with pytest.raises(LotlipError, match="cannot write"):
        profile_training(config, tmp_path / "file" / "t.json", num_steps=1, on_event=print)
