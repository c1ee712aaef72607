"""Training on a real local Ray, tracked in a real MLflow database."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
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
from mlflow import MlflowClient
from servers import end_session

from lotlip.data.scenes import make_sample
from lotlip.data.shards import CaptionCount, shard_name, write_dataset, write_shard
from lotlip.data.store import FolderStore, Store
from lotlip.errors import ClusterError, ConfigError, DataError
from lotlip.train.trace import StepTrace
from lotlip_platform import tracking
from lotlip_platform.cli import main
from lotlip_platform.config import build_config
from lotlip_platform.mailbox import Mailbox
from lotlip_platform.precompute import precompute
from lotlip_platform.preemption import Stopped
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.storage import ensure_bucket, open_store
from lotlip_platform.teller import Teller
from lotlip_platform.train import TrainResult, checked_data, train
from lotlip_platform.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("mlflow_file")

LOTLIP = str(Path(sys.executable).with_name("lotlip"))
# A shell that runs the tests in the background makes all below it deaf to SIGINT.
HEAR = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
INTERRUPTIBLE = [sys.executable, "-c", f"{HEAR}os.execv(sys.argv[1], sys.argv[1:])"]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """One Ray for all tests here; `train` uses the connection that it finds."""
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def write_scenes(store: Store, *, num: int, start: int, broken: tuple[int, ...] = ()) -> None:
    """Scenes in shards of 64; the images at the places `broken` are none."""
    written = []
    for first in range(0, num, 64):
        count, samples = CaptionCount(), []
        for place in range(first, min(first + 64, num)):
            sample = make_sample(0, start + place)
            if place in broken:
                sample = sample.__class__(**{**vars(sample), "image": b"not an image"})
            count.add(sample)
            samples.append(sample)
        written.append((write_shard(store, shard_name(first // 64), samples), count))
    write_dataset(store, written, {"command": "test"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 scenes to train on and 32 held-out ones."""
    folder = tmp_path_factory.mktemp("data")
    write_scenes(FolderStore(folder / "train"), num=256, start=0)
    write_scenes(FolderStore(folder / "held-out"), num=32, start=1_000_000_000)
    return folder


def values(data: Path, store: str | Path, **changes: Any) -> dict[str, Any]:
    """A run of 8 steps on the tiny preset; `changes` as `train__num_samples=64`."""
    config: dict[str, Any] = {
        "name": "tiny",
        "store": str(store),
        "model": {"preset": "tiny"},
        "data": {"train": str(data / "train"), "order": {"shuffle_window": 16}},
        "train": {
            "num_samples": 256,
            "global_batch": 32,
            "save_every_steps": 3,
            "log_every_steps": 2,
        },
        "eval": {"data": str(data / "held-out"), "benchmark": "scenes", "num_samples": 32},
        "cluster": {"num_workers": 2},
    }
    for key, value in changes.items():
        *groups, last = key.split("__")
        inner = config
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return config


def run(values: dict[str, Any]) -> tuple[TrainResult, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return train(build_config(TrainConfig, values), events.append), events


def mlflow_run(run_id: str) -> Any:
    return MlflowClient(tracking.tracking_uri()).get_run(run_id)


def only_run() -> Any:
    (found,) = MlflowClient(tracking.tracking_uri()).search_runs(["1"])
    return found


def losses(events: list[dict[str, Any]]) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events if event["kind"] == "step"}


def test_a_run_ends_as_a_registered_model_with_its_whole_story_in_mlflow(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(data)
    changes = {"train__eval_every_steps": 4, "train__trace": True}
    changes["data__train"] = "train"  # relative to where it runs
    result, events = run(values(data, tmp_path, **changes))
    assert sorted(losses(events)) == list(range(1, 9))
    assert result.model_uri == "models:/lotlip/1"
    found = mlflow_run(result.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["model.text.num_corner_tokens"] == "2"
    assert found.data.tags["data_manifest"] == found.inputs.dataset_inputs[0].dataset.digest
    assert {"code_version", "torch_version", "run_folder"} <= found.data.tags.keys()
    assert found.data.metrics["train/loss"] > 0
    assert found.data.metrics["system/worker_memory_usage_megabytes"] > 10
    assert found.data.metrics.keys() >= {"system/cpu_utilization_percentage", "train/tokens_per_s"}
    assert found.data.metrics["train/worker_tflops_per_s"] > 0
    client = MlflowClient(tracking.tracking_uri())
    recall = client.get_metric_history(result.run_id, "eval/scenes/long_text_to_image_r1")
    assert [point.step for point in recall] == [4, 8]
    artifacts = {item.path for item in client.list_artifacts(result.run_id, "figures")}
    assert artifacts == {
        *("figures/curves.png", "figures/retrieval.png"),
        *("figures/attention.html", "figures/attention.png"),
    }
    assert client.get_model_version_by_alias("lotlip", "candidate").run_id == result.run_id
    names = {path.name for path in (tmp_path / "tiny" / "checkpoints").iterdir()}
    assert names >= {"step-00000006", "step-00000008"}

    again, events = run(values(data, tmp_path, **changes))
    assert again == result
    assert [event["kind"] for event in events] == ["note"]

    with pytest.raises(ConfigError, match=r"another train\.seed=0"):
        run(values(data, tmp_path, train__seed=1, **changes))
    check_that_it_can_be_made_again(result, tmp_path, capsys)


def check_that_it_can_be_made_again(
    result: TrainResult, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the commands that `lotlip models show --reproduce` prints, all but those for the code."""
    card = MlflowClient(tracking.tracking_uri()).get_model_version("lotlip", "1").description
    assert "with 2 corner tokens" in card
    assert "| Licence of the data (its first 100 samples) | &nbsp; CC0-1.0 |" in card
    recall = result.metrics["long_text_to_image_r1"]
    assert f"| `long_text_to_image_r1` | &nbsp; {100 * recall.value:.1f} [" in card
    capsys.readouterr()
    assert main(["models", "show", "lotlip@candidate"]) == 0
    told = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert told["weights"].strip() == result.digest
    assert result.run_id in told["run"]
    assert main(["models", "show", "lotlip@candidate", "--reproduce"]) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lotlip ")]
    assert [command.split()[1] for command in commands] == ["models", "data", "train", "trace"]
    for command in commands:
        arguments, _, file = command.partition(" > ")
        capsys.readouterr()
        assert main(shlex.split(arguments)[1:]) == 0, command
        if file:
            Path(file).write_text(capsys.readouterr().out)
    again = json.loads((store / "tiny-again" / "result.json").read_text())
    assert again["digest"] == result.digest


def test_features_of_the_locked_tower_are_computed_once_and_teach_the_same(
    data: Path, tmp_path: Path
):
    changes = {
        "model": {"preset": "tiny", "image": {"locked_layers": -1}},
        "augment": {"min_crop_area": 1.0},
        "cluster__num_workers": 1,
        "tracking__registered_model": "",
    }
    on_pixels, of_pixels = run(values(data, tmp_path / "pixels", **changes))
    changes["data__features"] = str(tmp_path / "features")
    events = []
    config = build_config(TrainConfig, values(data, tmp_path / "runs", **changes))
    computed = precompute(config, events.append)
    done = [event["done"] for event in events if event["kind"] == "features"]
    assert (done[0], done[-1], len(done)) == (0, 256, 5)
    assert (computed.num_samples, Path(computed.uri).parent) == (256, tmp_path / "features")
    assert re.fullmatch(
        r"an epoch reads \d\.\d MB, not \d\.\d; tasks spent \d\.\d minutes on the images, once for "
        "all epochs",
        computed.saving,
    )
    result, events = run(values(data, tmp_path / "runs", **changes))
    assert "features" not in {event["kind"] for event in events}  # they were there
    notes = [event["text"] for event in events if event["kind"] == "note"]
    assert f"features of the locked image tower: {computed.saving}" in notes
    assert losses(events) == pytest.approx(losses(of_pixels), abs=1e-5)
    assert result.metrics.keys() == on_pixels.metrics.keys()

    (kept,) = (tmp_path / "features").iterdir()
    written = {path: path.stat().st_mtime_ns for path in kept.glob("*.tar")}
    (kept / "manifest.json").unlink()  # as if interrupted behind the last shard
    events = []
    precompute(config, events.append)
    assert "features" in {event["kind"] for event in events}
    assert {path: path.stat().st_mtime_ns for path in kept.glob("*.tar")} == written


def test_features_are_refused_where_the_tower_learns_or_images_vary(data: Path, tmp_path: Path):
    locked = {"preset": "tiny", "image": {"locked_layers": -1}}
    for changes in ({"augment__min_crop_area": 1.0}, {"model": locked}):
        with pytest.raises(ConfigError, match=r"data\.features=/kept needs the same features"):
            run(values(data, tmp_path, data__features="/kept", **changes))


def trace_of(store: Path) -> list[StepTrace]:
    """What each step of the run there was trained on."""
    return list(RunFolder(open_store(str(store / "tiny"))).read_trace())


def workers() -> list[psutil.Process]:
    """The training workers of this module's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_worker_hears_that_it_is_to_stop_however_fast_it_tells():
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    send = Teller(mailbox)
    send({"kind": "step"})
    assert not send.to_stop()
    ray.get(mailbox.tell_to_stop.remote(True))
    deadline = time.monotonic() + 30
    while not send.to_stop() and time.monotonic() < deadline:
        send({"kind": "step"})
    assert send.to_stop()
    ray.kill(mailbox)


def test_an_interrupt_ends_the_workers_even_where_ray_goes_on(data: Path, tmp_path: Path):
    def interrupt(event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            raise KeyboardInterrupt

    changes = {"train__num_samples": 12_800, "tracking__registered_model": ""}
    config = build_config(TrainConfig, values(data, tmp_path, **changes))
    whole = ray.available_resources()
    with pytest.raises(KeyboardInterrupt):
        train(config, interrupt)
    assert only_run().info.status == "KILLED"
    deadline = time.monotonic() + 30
    while ray.available_resources()["CPU"] != whole["CPU"] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == whole["CPU"]
    assert not workers()


LONGER = {
    "tracking__registered_model": "",
    "eval__data": "",
    "train__num_samples": 1600,
    "train__save_every_steps": 10,
    "train__trace": True,
}


@pytest.fixture(scope="module")
def undisturbed(
    data: Path, new_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, dict[int, float]]:
    """Of a run of 50 steps on two workers that was left alone: store, digest, losses."""
    store = tmp_path_factory.mktemp("undisturbed")
    (store / "home" / "mlflow").mkdir(parents=True)
    shutil.copy(new_database, store / "home" / "mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOTLIP_HOME", str(store / "home"))
        result, events = run(values(data, store, **LONGER))
    return store, result.digest, losses(events)


def test_a_run_that_is_told_to_stop_saves_and_goes_on_with_other_workers(
    data: Path, tmp_path: Path, undisturbed: tuple[Path, str, dict[int, float]]
):
    events: list[dict[str, Any]] = []

    def tell_to_stop_at_step_4(event: dict[str, Any]) -> None:
        events.append(event)
        if event["kind"] == "step" and event["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    config = build_config(TrainConfig, values(data, tmp_path, **LONGER))
    with pytest.raises(Stopped) as stopped:
        train(config, tell_to_stop_at_step_4, command="lotlip train it")
    at = stopped.value.step
    assert 4 <= at < 50
    assert f"stopped at step {at} of 50, saved" in str(stopped.value)
    assert (tmp_path / f"tiny/checkpoints/step-{at:08d}/commit.json").exists()
    found = only_run()
    assert found.info.status == "KILLED"
    assert found.data.tags["stopped"] == f"preempted by SIGTERM at step {at} of 50"
    assert found.data.tags["continue_with"] == "lotlip train it"

    result, after = run(values(data, tmp_path, cluster__num_workers=1, **LONGER))
    assert result.run_id == found.info.run_id
    assert only_run().info.status == "FINISHED"
    assert not {"stopped", "continue_with"} & only_run().data.tags.keys()
    store, _, expected = undisturbed
    together = losses(events) | losses(after)
    assert min(losses(after)) == at + 1
    assert together == pytest.approx(expected, abs=1e-5)
    assert trace_of(tmp_path) == trace_of(store)
    assert len(trace_of(tmp_path)) == 50
    assert not list(tmp_path.glob("tiny/trace/*"))  # the workers' parts are joined


@pytest.fixture
def _heeding_ctrl_c() -> Iterator[None]:
    """A shell that starts a command in the background has it ignore SIGINT, which runs respect."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeding_ctrl_c")
def test_a_second_signal_ends_the_run_at_once(data: Path, tmp_path: Path):
    def signal_twice(event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            os.kill(os.getpid(), signal.SIGINT)

    changes = {"train__num_samples": 12_800, "tracking__registered_model": "", "eval__data": ""}
    changes["cluster__num_workers"] = 1
    config = build_config(TrainConfig, values(data, tmp_path, **changes))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt) as interrupt:
        train(config, signal_twice)
    assert not isinstance(interrupt.value, Stopped)
    assert only_run().info.status == "KILLED"
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(
    data: Path, tmp_path: Path, undisturbed: tuple[Path, str, dict[int, float]]
):
    store, digest, _ = undisturbed
    killed: list[int] = []
    notes: list[str] = []

    def kill_one_after_the_second_checkpoint(event: dict[str, Any]) -> None:
        if event["kind"] == "note":
            notes.append(event["text"])
        if event["kind"] == "saved" and event["step"] >= 20 and not killed:
            youngest = max(workers(), key=lambda process: process.create_time())
            killed.append(youngest.pid)
            youngest.kill()

    config = build_config(TrainConfig, values(data, tmp_path, **LONGER))
    result = train(config, kill_one_after_the_second_checkpoint)
    assert killed
    assert any("starting them again" in note for note in notes)
    assert any(note.startswith("resuming at step") for note in notes)
    assert result.digest == digest
    assert trace_of(tmp_path) == trace_of(store)
    assert mlflow_run(result.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_frozen_worker_is_killed_and_the_result_is_the_same(
    data: Path,
    tmp_path: Path,
    undisturbed: tuple[Path, str, dict[int, float]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("lotlip_platform.workers._SILENCE_S", 6.0)
    store, digest, _ = undisturbed
    frozen: list[psutil.Process] = []
    notes: list[str] = []

    def freeze_one_after_the_second_checkpoint(event: dict[str, Any]) -> None:
        if event["kind"] == "note":
            notes.append(event["text"])
        if event["kind"] == "saved" and event["step"] >= 20 and not frozen:
            frozen.append(max(workers(), key=lambda process: process.create_time()))
            frozen[0].suspend()

    config = build_config(TrainConfig, values(data, tmp_path, **LONGER))
    result = train(config, freeze_one_after_the_second_checkpoint)
    silent = rf"worker [01] \(process {frozen[0].pid} on .*\) gives no sign of life for 6 s"
    assert any(re.match(silent, note) for note in notes)
    assert any(re.match(rf"the workers failed \({silent}\)", note) for note in notes)
    assert not frozen[0].is_running()
    assert result.digest == digest
    assert trace_of(tmp_path) == trace_of(store)


def test_workers_that_need_too_much_memory_save_before_they_are_given_up(
    data: Path, tmp_path: Path
):
    changes = {
        "train__num_samples": 32_000,
        "train__save_every_steps": 1000,
        "cluster__max_memory_gb": 0.05,
        "cluster__max_failures": 0,
        "cluster__num_workers": 1,
        "eval__data": "",
    }
    failed = r"training failed 1 times, last with: worker . \(.*\) uses 0\..* GB of memory, more"
    with pytest.raises(ClusterError, match=failed):
        run(values(data, tmp_path, **changes))
    assert list((tmp_path / "tiny" / "checkpoints").glob("*/commit.json"))
    assert only_run().info.status == "FAILED"


def test_bad_samples_in_s3_are_recorded_and_too_many_end_the_run_as_failed(
    data: Path, tmp_path: Path, s3_env: str
):
    ensure_bucket("s3://lotlip-train")
    for name, broken in {"few": (5,), "many": tuple(range(0, 256, 8))}.items():
        store = open_store(f"s3://lotlip-train/{name}")
        write_scenes(store, num=256, start=0, broken=broken)
    changes = {
        "tracking__registered_model": "",
        "eval__data": "",
        "data__max_bad_fraction": 0.01,
        "cluster__num_workers": 1,
        "data__train": "s3://lotlip-train/few",
    }
    result, events = run(values(data, "s3://lotlip-train/runs", **changes))
    (bad,) = [event["samples"] for event in events if event["kind"] == "bad"]
    places = [(sample["epoch"], sample["shard"], sample["index"]) for sample in bad]
    assert places == [(0, shard_name(0), 5)]
    client = MlflowClient(tracking.tracking_uri())
    recorded = Path(client.download_artifacts(result.run_id, "bad_samples.jsonl")).read_text()
    assert json.loads(recorded)["index"] == 5
    kept = json.loads(open_store("s3://lotlip-train/runs/tiny").read("result.json"))
    assert kept["samples"] == {"read": 256, "used": 255}

    changes |= {"name": "many", "data__train": "s3://lotlip-train/many"}
    with pytest.raises(DataError, match=r"bad samples in epoch 0.*max_bad_fraction=0\.01"):
        run(values(data, "s3://lotlip-train/runs", **changes))
    failed = client.search_runs(["1"], "attributes.run_name = 'many'")[0]
    assert failed.info.status == "FAILED"
    listed = open_store("s3://lotlip-train/runs/many").read("bad_samples.jsonl").splitlines()
    reasons = {json.loads(line)["reason"] for line in listed}
    assert reasons == {"image does not decode: it is of no known format"}
    assert len(listed) > 2


def test_a_run_makes_the_scenes_that_are_not_there_and_tells_of_those_that_are(tmp_path: Path):
    def made(num_train: int) -> tuple[int, list[str]]:
        values = {
            "name": "run",
            "store": str(tmp_path),
            "model": {"preset": "tiny"},
            "data": {"train": f"{tmp_path}/train"},
            "scenes": {"uri": f"{tmp_path}/", "num_train": num_train},
            "train": {"num_samples": 32, "global_batch": 32},
        }
        events: list[dict[str, Any]] = []
        manifest = checked_data(build_config(TrainConfig, values), events.append)
        return manifest.num_samples, [one["text"] for one in events if one["kind"] == "note"]

    assert made(64) == (64, [f"{tmp_path}/train is empty: making 64 scenes"])
    assert made(64) == (64, [])
    assert made(96) == (64, [f"{tmp_path}/train has 64 scenes already: these are used"])
    assert not (tmp_path / "validation").exists()


def test_more_workers_than_the_cluster_has_is_told_before_anything_is_written(
    data: Path, tmp_path: Path
):
    with pytest.raises(ClusterError, match=r"cluster\.num_workers=8 with 1 CPUs each"):
        run(values(data, tmp_path / "runs", cluster__num_workers=8))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_stopped_command_ends_its_run_as_killed(data: Path, tmp_path: Path):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(values(data, tmp_path / "runs", train__num_samples=12_800)))
    command = [*INTERRUPTIBLE, LOTLIP, "train", str(config), "tracking.registered_model="]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    commit = tmp_path / "runs/tiny/checkpoints/step-00000003/commit.json"
    deadline = time.monotonic() + 120
    while not commit.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    (at,) = re.findall(r"^lotlip: stopped at step (\d+) of 400, saved", said, re.MULTILINE)
    assert (tmp_path / f"runs/tiny/checkpoints/step-{int(at):08d}/commit.json").exists()
    continue_with = only_run().data.tags["continue_with"]
    assert continue_with == f"lotlip train {config} tracking.registered_model="
    deadline = time.monotonic() + 60
    while only_run().info.status == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.5)
    assert only_run().info.status == "KILLED"
    end_session(process.pid)  # its local Ray would have to notice that by itself
