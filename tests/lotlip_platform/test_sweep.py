"""Sweeps on a real local Ray, tracked in a real MLflow database."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from ray._private.state import state as ray_state
from ray.util import placement_group, placement_group_table, remove_placement_group

from lotlip.data.scenes import make_sample
from lotlip.data.shards import CaptionCount, shard_name, write_dataset, write_shard
from lotlip.data.store import FolderStore
from lotlip.errors import ClusterError, ConfigError, LotlipError
from lotlip_platform import tracking
from lotlip_platform.config import build_config
from lotlip_platform.journal import journals
from lotlip_platform.sweep import SweepResult, find_sweep, report, sweep
from lotlip_platform.sweep_config import SweepConfig
from lotlip_platform.sweep_ledger import Ledger, TrialRecord
from lotlip_platform.sweep_run import Throughput

pytestmark = pytest.mark.usefixtures("mlflow_file")


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """One Ray for all tests here; `sweep` uses the connection that it finds."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run of 8 steps on the tiny preset, with its data."""
    folder = tmp_path_factory.mktemp("base")
    for name, num, start in (("train", 128, 0), ("held-out", 32, 1_000_000_000)):
        store, count = FolderStore(folder / name), CaptionCount()
        samples = [make_sample(0, start + place) for place in range(num)]
        for sample in samples:
            count.add(sample)
        write_dataset(store, [(write_shard(store, shard_name(0), samples), count)], {})
    config = {
        "name": "base",
        "model": {"preset": "tiny"},
        "data": {"train": str(folder / "train"), "order": {"shuffle_window": 16, "num_streams": 4}},
        "train": {
            "num_samples": 256,
            "global_batch": 32,
            "eval_every_steps": 2,
            "save_every_steps": 2,
            "log_every_steps": 2,
        },
        "eval": {"data": str(folder / "held-out"), "benchmark": "scenes", "num_samples": 32},
    }
    file = folder / "base.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def sweep_config(base: Path, store: Path, **changes: Any) -> SweepConfig:
    values = {
        "name": "tokens",
        "store": str(store),
        "train": str(base),
        "space": {"model.text.num_corner_tokens": [0, 2]},
        "seeds": [0, 1],
    }
    return build_config(SweepConfig, values | changes)


def run(config: SweepConfig) -> tuple[SweepResult, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return sweep(config, events.append), events


def statuses(result: SweepResult) -> list[str]:
    return [record.status for record in result.records]


def test_each_point_is_trained_with_each_seed_and_told_below_the_sweeps_run(
    base: Path, tmp_path: Path
) -> None:
    result, events = run(sweep_config(base, tmp_path))
    assert statuses(result) == 4 * ["finished"]
    points = [(r.point["model.text.num_corner_tokens"], r.seed) for r in result.records]
    assert points == [(0, 0), (2, 0), (0, 1), (2, 1)]
    assert [r.samples_seen for r in result.records] == 4 * [256]
    client = MlflowClient(tracking.tracking_uri())
    runs = {run.info.run_name: run for run in client.search_runs(["1"])}
    parent = runs.pop("tokens")
    assert parent.info.run_id == result.run_id
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["sweep/finished"] == 4
    for record in result.records:
        child = runs.pop(record.name)
        assert child.info.status == "FINISHED"
        assert child.data.tags[MLFLOW_PARENT_RUN_ID] == parent.info.run_id
        corners = str(record.point["model.text.num_corner_tokens"])
        assert child.data.params["model.text.num_corner_tokens"] == corners
        assert child.data.tags["point.model.text.num_corner_tokens"] == corners
        name = "long_text_to_image_r1"
        recall = record.results[-1]["metrics"][name]["value"]
        assert child.data.metrics[f"eval/scenes/{name}"] == recall
    assert not runs
    kinds = [event["status"] for event in events if event["kind"] == "trial"]
    assert kinds.count("finished") == 4
    assert journals() == []  # all is sent
    assert parent.data.tags["best"] in {record.label for record in result.records}
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"config.yaml", "report.html", "trials.csv", "figures"} <= names
    page = tmp_path / "tokens" / "report" / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert report(FolderStore(tmp_path / "tokens")) == str(page)
    assert page.read_bytes() == before


def left_behind() -> list[str]:
    """Actors and placement groups that live, of Ray's or ours."""
    of_ray = [*ray_state.actor_table(None).values(), *placement_group_table().values()]
    states = [str(one.get("State") or one.get("state")) for one in of_ray]
    return [state for state in states if state not in ("DEAD", "REMOVED")]


@pytest.mark.slow
def test_a_second_start_trains_nothing_again_but_what_is_new(base: Path, tmp_path: Path) -> None:
    first, _ = run(sweep_config(base, tmp_path, seeds=[0]))
    before = {r.name: json.dumps(dataclasses.asdict(r)) for r in first.records}
    second, events = run(
        sweep_config(base, tmp_path, seeds=[0], space={"model.text.num_corner_tokens": [0, 1, 2]})
    )
    assert statuses(second) == 3 * ["finished"]
    after = {r.name: json.dumps(dataclasses.asdict(r)) for r in second.records}
    assert {name: after[name] for name in before} == before
    trained = [event["trial"].point for event in events if "trial" in event]
    assert {point["model.text.num_corner_tokens"] for point in trained} == {1}
    assert second.run_id == first.run_id
    # What it began with may not change under it.
    for changes, message in (
        ({"metric": "recall"}, r"metric=recall is not measured by .* these are: .*long_text"),
        ({"set": {"optim": {"lr": 1e-5}}}, r"holds a run with another optim\.lr"),
        ({"set": {"eval": {"num_samples": 16}}}, r"holds a run with another eval\.num_samples"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(sweep_config(base, tmp_path, seeds=[0], **changes))
    # As if the driver had been killed before it heard that the last trial was through.
    ledger, last = Ledger(FolderStore(tmp_path / "tokens")), first.records[-1]
    kept = dataclasses.replace(last, status="running", results=last.results[:-1])
    ledger.write(kept)
    again, events = run(sweep_config(base, tmp_path, seeds=[0]))
    assert statuses(again) == ["finished", "finished"]
    assert again.records[-1].results[-1]["metrics"] == last.results[-1]["metrics"]
    assert again.records[-1].samples_seen == 256
    assert not [event for event in events if event["kind"] == "metrics"]


@pytest.mark.slow
def test_twenty_trials_that_are_stopped_early_leave_nothing_behind(
    base: Path, tmp_path: Path
) -> None:
    config = sweep_config(
        base,
        tmp_path,
        space={"optim.lr": {"log_uniform": [1e-5, 1e-2]}},
        num_draws=32,
        seeds=[0],
        metric="short_text_to_image_r10",
        # All that is not the best so far at its first evaluation ends there.
        early_stopping={"scheduler": "asha", "reduction_factor": 100},
    )
    result, _ = run(config)
    ends = statuses(result)
    assert ends.count("stopped") >= 20
    assert set(ends) == {"stopped", "finished"}
    for record in result.records:
        assert record.samples_seen == (256 if record.status == "finished" else 64)
    assert 0 < result.between_s < result.overhead_s
    deadline = time.monotonic() + 10
    while left_behind() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left_behind() == []
    assert ray.available_resources()["CPU"] == 2


def test_a_trial_that_fails_is_told_with_its_reason_and_the_others_go_on(
    base: Path, tmp_path: Path
) -> None:
    space = {"optim.lr": [1e-3, 1e30, -1.0]}
    result, events = run(sweep_config(base, tmp_path, space=space, seeds=[0]))
    _, bad, impossible = result.records
    assert statuses(result) == ["finished", "failed", "failed"]
    assert impossible.error == "optim.lr=-1.0 must be above 0"
    failed = [event["trial"].name for event in events if event.get("status") == "failed"]
    assert set(failed) == {bad.name, impossible.name}
    page = (tmp_path / "tokens" / "report" / "report.html").read_text()
    assert page.count('class="failed"') == 2
    assert "the loss is" in bad.error or "the gradient" in bad.error
    assert bad.error.startswith("step ")
    runs = {r.info.run_name: r for r in MlflowClient(tracking.tracking_uri()).search_runs(["1"])}
    assert runs[bad.name].info.status == "FAILED"
    assert runs["tokens"].info.status == "FINISHED"


@pytest.mark.slow
def test_a_metric_that_the_benchmark_does_not_measure_is_told(base: Path, tmp_path: Path) -> None:
    config = sweep_config(
        base, tmp_path, metric="r_at_1", seeds=[0], space={"model.text.num_corner_tokens": [2]}
    )
    result, _ = run(config)
    assert statuses(result) == ["failed"]
    (record,) = result.records
    assert record.error.startswith("metric=r_at_1 is not measured by eval.benchmark; these are")
    assert "long_text_to_image_r1" in record.error


@pytest.mark.slow
def test_a_budget_ends_the_sweep_and_a_larger_one_has_it_go_on(base: Path, tmp_path: Path) -> None:
    longer = {"set": {"train": {"num_samples": 1024}}, "max_concurrent": 1}
    config = sweep_config(base, tmp_path, seeds=[0], budget={"max_samples": 1100}, **longer)
    first, events = run(config)
    assert statuses(first) == ["finished", "running"]
    spent = "budget.max_samples=1100 is spent, 1 trials are not through; with more they go on"
    assert spent in [event["text"] for event in events if event["kind"] == "note"]
    assert sum(record.samples_seen for record in first.records) < 2048
    second, events = run(sweep_config(base, tmp_path, seeds=[0], **longer))
    assert statuses(second) == ["finished", "finished"]
    assert [record.samples_seen for record in second.records] == [1024, 1024]
    trained = {event["trial"].name for event in events if event["kind"] == "metrics"}
    assert trained == {second.records[1].name}


def test_a_sweep_whose_trials_get_no_room_ends_and_tells_so(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lotlip_platform.sweep_follower._STARVED_S", 3.0)
    taken = placement_group([{"CPU": 2}])
    ray.get(taken.ready())
    try:
        with pytest.raises(ClusterError, match=r"no trial has run for 3 s though 4 wait.* 0 CPUs"):
            run(sweep_config(base, tmp_path))
    finally:
        remove_placement_group(taken)


@pytest.mark.slow
def test_after_kill_9_of_the_driver_the_same_command_goes_on(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    values = {
        "name": "tokens",
        "store": str(tmp_path),
        "train": str(base),
        "set": {"train": {"num_samples": 4096, "eval_every_steps": 8, "save_every_steps": 8}},
        "space": {"model.text.num_corner_tokens": [0, 2]},
        "seeds": [0, 1],
        "max_concurrent": 1,
    }
    file.write_text(yaml.safe_dump(values))
    ledger = Ledger(FolderStore(tmp_path / "tokens"))

    def interrupted() -> list[TrialRecord]:
        records = list(ledger.read().values())
        is_half_way = any(r.status == "running" and len(r.results) > 1 for r in records)
        return records if is_half_way and any(r.status == "finished" for r in records) else []

    command = Path(sys.executable).with_name("lotlip"), "sweep", str(file)
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not interrupted():
            assert time.monotonic() < deadline
            assert driver.poll() is None
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.wait()
    before = {record.name: record for record in ledger.read().values()}
    finished = [record for record in before.values() if record.status == "finished"]
    (half_way,) = [r for r in before.values() if r.status == "running" and r.results]

    result, events = run(build_config(SweepConfig, values))
    assert statuses(result) == 4 * ["finished"]
    after = {record.name: record for record in result.records}
    assert [after[record.name] for record in finished] == finished
    assert after[half_way.name].results[: len(half_way.results)] == half_way.results
    notes = [e["text"] for e in events if e["kind"] == "note" and e.get("trial")]
    assert any(note.startswith("resuming at step ") for note in notes)
    client = MlflowClient(tracking.tracking_uri())
    runs = client.search_runs(["1"])
    assert len(runs) == 5
    assert {run.info.status for run in runs} == {"FINISHED"}
    steps = client.get_metric_history(
        next(r.info.run_id for r in runs if r.info.run_name == half_way.name), "train/loss"
    )
    assert [point.step for point in steps] == list(range(2, 129, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("actor", "signal_number", "note"),
    [
        ("TrialWorker", signal.SIGKILL, "): starting them again"),
        ("TrialActor", signal.SIGKILL, ""),  # Tune has it start anew, and says nothing
    ],
)
def test_a_trial_goes_on_when_one_of_its_processes_dies(
    base: Path, tmp_path: Path, actor: str, signal_number: int, note: str
) -> None:
    hit: list[int] = []
    events: list[dict[str, Any]] = []

    def watch(event: dict[str, Any]) -> None:
        events.append(event)
        there = (p for p in psutil.Process().children(recursive=True) if actor in p.name())
        if event["kind"] == "progress" and event["done"] and not hit and (one := next(there, None)):
            hit.append(one.pid)
            one.send_signal(signal_number)

    config = sweep_config(
        base,
        tmp_path,
        set={"train": {"num_samples": 2048, "eval_every_steps": 4, "save_every_steps": 4}},
        space={"model.text.num_corner_tokens": [2]},
        seeds=[0],
    )
    result = sweep(config, watch)
    assert hit
    assert statuses(result) == ["finished"]
    samples = [r["samples"] for r in result.records[0].results]
    if actor == "TrialWorker":
        assert samples == list(range(128, 2049, 128))
    else:  # results that its actor had not told yet are lost, training is not
        assert samples == sorted(set(samples))
        assert samples[-1] == 2048
    notes = " ".join(event["text"] for event in events if event["kind"] == "note")
    assert note in notes
    assert "resuming at step " in notes


@pytest.mark.slow
def test_a_stopped_sweep_has_its_trials_save_and_tells_so(base: Path, tmp_path: Path) -> None:
    config = sweep_config(
        base,
        tmp_path,
        set={"train": {"num_samples": 100_000, "eval_every_steps": 4, "save_every_steps": 100_000}},
        seeds=[0],
    )

    sent: list[int] = []

    def interrupt(event: dict[str, Any]) -> None:
        if event["kind"] == "progress" and event["done"] > 0 and not sent:
            sent.append(1)
            signal.raise_signal(signal.SIGTERM)  # SIGINT may be ignored, as in the background

    with pytest.raises(KeyboardInterrupt, match="the same command goes on from here"):
        sweep(config, interrupt)
    for folder in (tmp_path / "tokens" / "trials").iterdir():
        assert list((folder / "checkpoints").iterdir())
    runs = MlflowClient(tracking.tracking_uri()).search_runs(["1"])
    assert {run.info.status for run in runs} == {"KILLED"}
    assert {r.status for r in Ledger(FolderStore(tmp_path / "tokens")).read().values()} == {
        "running"
    }


def test_throughput_is_that_of_all_steps_not_of_the_last_ones() -> None:
    found = Throughput(global_batch=10)
    assert found.means == {}
    found.take(10, {"train/samples_per_s": 100.0, "train/tokens_per_s": 1000.0})
    found.take(10, {"eval/scenes/long_text_to_image_r1": 0.5})
    found.take(40, {"train/samples_per_s": 50.0, "train/tokens_per_s": 2000.0})
    found.take(42, {"train/samples_per_s": 10.0, "train/tokens_per_s": 100.0})
    # 1 + 6 + 2 seconds for 420 samples, and 1000 + 12000 + 200 tokens
    assert found.means["train/samples_per_s"] == pytest.approx(420 / 9)
    assert found.means["train/tokens_per_s"] == pytest.approx(13_200 / 9)
    before = found.means
    found.take(20, {"train/samples_per_s": 10.0, "train/tokens_per_s": 100.0})  # again, from 10
    assert found.means == before


def test_a_sweep_is_found_by_its_config_its_name_and_its_address(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sweep/arms", "arms", "sweep/arms.yaml", "s3://lotlip/sweeps/arms"):
        assert find_sweep(name).uri == "s3://lotlip/sweeps/arms"
    assert find_sweep("arms", ["name=other"]).uri == "s3://lotlip/sweeps/other"
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump({"name": "mine", "train": str(base), "space": {"optim.lr": [1]}})
    )
    monkeypatch.setenv("LOTLIP_HOME", str(tmp_path / "home"))
    mine = tmp_path / "home" / "sweeps" / "mine"
    assert find_sweep(str(file)).uri == str(mine)
    with pytest.raises(ConfigError, match="there is no sweep mine: give its config, or its addr"):
        find_sweep("mine")
    mine.mkdir(parents=True)
    (mine / "sweep.json").write_text("{}")
    for name in ("mine", str(mine)):
        assert find_sweep(name).uri == str(mine)


@pytest.mark.slow
def test_a_point_whose_data_or_weights_are_gone_fails_alone_and_keeps_what_it_had(
    base: Path, tmp_path: Path
) -> None:
    shutil.copytree(base.parent / "train", tmp_path / "copy")
    space = {"data.train": [str(base.parent / "train"), str(tmp_path / "copy")]}
    first, _ = run(sweep_config(base, tmp_path, space=space, seeds=[0]))
    assert statuses(first) == ["finished", "finished"]
    shutil.rmtree(tmp_path / "copy")
    again, _ = run(sweep_config(base, tmp_path, space=space, seeds=[0]))
    assert [r.results for r in again.records] == [r.results for r in first.records]
    more = {"model.image.pretrained": ["", "/no/weights"]}
    config = sweep_config(base, tmp_path, name="weights", space=more, seeds=[0])
    result, _ = run(config)
    assert statuses(result) == ["finished", "failed"]
    assert "/no/weights" in result.records[1].error
    with pytest.raises(LotlipError, match="/no/weights"):
        run(
            sweep_config(
                base,
                tmp_path,
                name="none",
                space={"optim.lr": [1e-3]},
                seeds=[0],
                set={"model": {"image": {"pretrained": "/no/weights"}}},
            )
        )
