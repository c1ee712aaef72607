from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lotlip.errors import ConfigError, TrackingError
from lotlip_platform import tracking
from lotlip_platform.local_services import local_artifacts, local_tracking_uri
from lotlip_platform.run_guard import RunGuard
from lotlip_platform.tracking import Server, TrackedRun, connect, open_run
from lotlip_platform.tracking_address import TrackingConfig

PASSWORD = "correct-horse"


@pytest.fixture
def server(mlflow_server: str) -> Server:
    return connect(mlflow_server)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's absence is noticed sooner."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "_FLUSH_S", 4.0)


def opened(server: Server, *, run_id: str | None = None, **changes: Any):
    options: dict[str, Any] = {"experiment": "tests", "name": "run", "params": {}, "tags": {}}
    return open_run(server, run_id=run_id, **(options | changes))


def status(client: MlflowClient, run_id: str) -> str:
    return client.get_run(run_id).info.status


def await_status(client: MlflowClient, run_id: str, wanted: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while status(client, run_id) != wanted:
        assert time.monotonic() < deadline, f"still {status(client, run_id)}"
        time.sleep(0.2)


def fill(run: TrackedRun) -> None:
    run.log_metrics({"train/loss": 2.0}, 1)
    run.log_metrics({"train/loss": 1.0, "eval/scenes/long_text_to_image_r1": 0.5}, 2)
    run.log_file("config.yaml", b"name: one\n")
    run.log_file_later("figures/curves.png", b"png")
    run.log_dataset("s3://bucket/scenes/train", digest="abc", context="training")


def check_filled(client: MlflowClient, run: Run) -> None:
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.metrics["train/loss"] == 1.0
    assert run.data.metrics["eval/scenes/long_text_to_image_r1"] == 0.5
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]
    assert run.data.params == {"optim.lr": "0.1", "captions.captioners": "['a']"}
    assert run.data.tags["code_version"] == "1"
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("scenes/train", "abc")
    assert "s3://bucket/scenes/train" in entry.dataset.source
    assert [tag.value for tag in entry.tags] == ["training"]
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["config.yaml", "figures"]


FILLING = {
    "params": {"optim.lr": 0.1, "captions.captioners": ["a"]},
    "tags": {"code_version": "1"},
}


def test_all_that_a_run_is_told_is_on_the_server(server: Server, tmp_path: Path) -> None:
    with opened(server, **FILLING) as run:
        assert status(server.client, run.run_id) == "RUNNING"
        fill(run)
        run.flush()
        assert run.history("train/loss") == [(1, 2.0), (2, 1.0)]
        assert run.history("train/nothing") == []
    check_filled(server.client, server.client.get_run(run.run_id))
    assert run.lost == []
    path = server.client.download_artifacts(run.run_id, "config.yaml", str(tmp_path))
    assert Path(path).read_bytes() == b"name: one\n"


def test_without_a_server_runs_are_kept_in_the_lotlip_home(
    own_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = connect()
    assert server.uri == local_tracking_uri()
    with opened(server, **FILLING) as run:
        fill(run)
    check_filled(server.client, server.client.get_run(run.run_id))
    assert list(local_artifacts().rglob("config.yaml"))
    assert {path.name for path in tmp_path.iterdir()} == {own_environment.name}


def test_a_local_folder_is_a_data_set_too(server: Server, tmp_path: Path) -> None:
    with opened(server) as run:
        run.log_dataset(str(tmp_path), digest="d", context="training")
    (entry,) = server.client.get_run(run.run_id).inputs.dataset_inputs
    assert str(tmp_path) in entry.dataset.source


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_a_run_ends_as_its_block_does(
    server: Server, error: type[BaseException], expected: str
) -> None:
    with contextlib.suppress(error), opened(server) as run:
        run.log_metrics({"train/loss": 1.0}, 1)
        raise error
    ended = server.client.get_run(run.run_id)
    assert ended.info.status == expected
    assert ended.info.end_time is not None
    assert ended.data.metrics["train/loss"] == 1.0


def test_a_run_of_a_killed_process_is_marked_as_killed(server: Server, tmp_path: Path) -> None:
    program = tmp_path / "trainer.py"
    program.write_text(
        "import sys, time\n"
        "from lotlip_platform.tracking import connect, open_run\n"
        "server = connect(sys.argv[1])\n"
        "with open_run(server, experiment='tests', name='killed', run_id=None, params={},\n"
        "              tags={}) as run:\n"
        "    print(run.run_id, flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, str(program), server.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        assert status(server.client, run_id) == "RUNNING"
        process.kill()
    await_status(server.client, run_id, "KILLED", 60)


def test_a_guard_survives_the_signals_of_a_stopping_job(server: Server) -> None:
    run = server.client.create_run("0")
    guard = RunGuard(server.uri, run.info.run_id)
    time.sleep(1.0)  # until it ignores them
    guard._process.send_signal(signal.SIGTERM)
    guard.abandon("FAILED")
    await_status(server.client, run.info.run_id, "FAILED", 60)
    guard._process.wait(30)


def test_a_guard_that_was_released_changes_nothing(server: Server) -> None:
    run = server.client.create_run("0")
    guard = RunGuard(server.uri, run.info.run_id)
    guard.release()
    assert guard._process.returncode == 0
    assert status(server.client, run.info.run_id) == "RUNNING"
    server.client.set_terminated(run.info.run_id)


def test_a_run_ends_though_its_guard_was_killed(server: Server) -> None:
    with opened(server) as run:
        (guard,) = guards_of(run)
        os.kill(guard, signal.SIGKILL)
    assert status(server.client, run.run_id) == "FINISHED"


def test_a_run_is_continued_by_its_id(server: Server) -> None:
    with contextlib.suppress(ValueError), opened(server, params={"a": 1}) as first:
        first.log_metrics({"train/loss": 2.0}, 1)
        raise ValueError
    with opened(server, run_id=first.run_id, params={"a": 2}, tags={"life": "two"}) as second:
        assert second.run_id == first.run_id
        assert status(server.client, second.run_id) == "RUNNING"
        second.log_metrics({"train/loss": 1.0}, 2)
        second.flush()
        assert second.history("train/loss") == [(1, 2.0), (2, 1.0)]
    run = server.client.get_run(first.run_id)
    assert (run.info.status, run.data.params, run.data.tags["life"]) == (
        "FINISHED",
        {"a": "1"},
        "two",
    )


@pytest.mark.parametrize("gone", ["deleted", "of another server"])
def test_a_run_that_is_gone_is_replaced_by_a_new_one(server: Server, gone: str) -> None:
    run_id = "0" * 32
    if gone == "deleted":
        with opened(server) as run:
            run_id = run.run_id
        server.client.delete_run(run_id)
    with opened(server, run_id=run_id, params={"a": 1}) as run:
        assert run.run_id != run_id
    assert server.client.get_run(run.run_id).data.params == {"a": "1"}


def test_a_deleted_experiment_is_one_line(server: Server) -> None:
    deleted = server.client.create_experiment("deleted")
    server.client.delete_experiment(deleted)
    with (
        pytest.raises(TrackingError, match="deleted") as error,
        opened(server, experiment="deleted"),
    ):
        pass
    assert "\n" not in str(error.value)


def test_a_run_that_cannot_be_described_is_not_left_running(server: Server) -> None:
    experiment = server.client.create_experiment("refused")
    with (
        pytest.raises(TrackingError),
        opened(server, experiment="refused", params={"bad(name)": 1}),
    ):
        pass
    runs = server.client.search_runs([experiment])
    assert [run.info.status for run in runs] == ["FAILED"]


def test_an_experiment_must_have_a_name() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.experiment"):
        TrackingConfig(experiment="")


def refusal(uri: str) -> str:
    began = time.monotonic()
    with pytest.raises(TrackingError) as error:
        connect(uri)
    assert time.monotonic() - began < 15
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_dead_server_is_told_in_one_line_within_seconds(dead_url: str) -> None:
    message = refusal(dead_url)
    assert f"no MLflow server at {dead_url} (" in message
    assert "Connection refused" in message


def test_a_server_that_accepts_but_never_answers_is_told_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "_ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "timed out" in refusal(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize(
    "uri", ["http://", "http://no-such-host.invalid", "ftp://host", "http://a:b"]
)
def test_an_address_that_is_none_is_told_in_one_line(uri: str) -> None:
    assert uri in refusal(uri)


@contextlib.contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], int]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer(self))
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()


def test_a_server_that_is_not_mlflow_is_told() -> None:
    with answering(lambda request: 404) as host:
        assert "it answered 404 to /health" in refusal(f"http://{host}")


def test_user_and_password_of_the_address_are_sent_but_never_shown() -> None:
    def checked(request: BaseHTTPRequestHandler) -> int:
        # user:correct-horse in base64
        return 200 if request.headers["Authorization"] == "Basic dXNlcjpjb3JyZWN0LWhvcnNl" else 401

    with answering(checked) as host:
        server = connect(f"http://user:{PASSWORD}@{host}")
        assert server.uri == f"http://{host}"
        message = refusal(f"http://user:wrong-{PASSWORD}@{host}")
    assert "it answered 401" in message
    assert PASSWORD not in message
    assert PASSWORD not in refusal(f"http://user:{PASSWORD}@{host}")


def test_a_run_behind_a_password_does_not_show_it(mlflow_server: str) -> None:
    server = connect(mlflow_server.replace("://", f"://user:{PASSWORD}@"))
    with opened(server) as run:
        processes = subprocess.run(
            ["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True
        )
        assert run.run_id in processes.stdout
        assert PASSWORD not in processes.stdout + run.uri
    with pytest.raises(TrackingError) as error, opened(server, params={"bad(name)": 1}):
        pass
    assert PASSWORD not in str(error.value)


@pytest.fixture(scope="module")
def fragile(start_mlflow: Callable[[], Any]) -> Any:
    return start_mlflow()


@pytest.mark.usefixtures("impatient")
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # the guard
@pytest.mark.parametrize("fate", [signal.SIGSTOP, signal.SIGKILL])  # in this order
def test_training_neither_waits_for_nor_dies_of_a_server_that_is_gone(
    fragile: Any, fate: signal.Signals
) -> None:
    server = connect(fragile.url)
    with opened(server) as run:
        run.log_metrics({"train/loss": 3.0}, 1)
        run.flush()
        fragile.signal(fate)
        began = time.monotonic()
        for step in range(2, 1000):
            run.log_metrics({"train/loss": 2.0}, step)
        run.log_file_later("figures/late.png", b"png")
        assert time.monotonic() - began < 1.0
        assert run.history("train/loss") == []
        left = time.monotonic()
    assert time.monotonic() - left < 15
    (guard,) = guards_of(run)
    if fate == signal.SIGSTOP:
        fragile.signal(signal.SIGCONT)
        await_status(server.client, run.run_id, "FINISHED", 60)
    else:
        os.kill(guard, signal.SIGKILL)
    gc.collect()  # while the filter holds


def guards_of(run: TrackedRun) -> list[int]:
    command = ["pgrep", "-f", f"run_guard {run.uri} {run.run_id}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def test_metrics_that_the_server_refuses_are_counted_and_the_rest_arrives(server: Server) -> None:
    with opened(server) as run:
        run.log_metrics({"bad(name)": 1.0}, 1)
        run.log_metrics({"train/loss": float("nan"), "train/lr": float("inf")}, 1)
    (reason,) = run.lost
    assert "bad(name)" in reason
    assert set(server.client.get_run(run.run_id).data.metrics) >= {"train/loss", "train/lr"}


def test_resumed_makes_the_run_active_and_leaves_it_running(server: Server) -> None:
    with opened(server) as run:
        with tracking.resumed(run):
            active = mlflow.active_run()
            assert active is not None
            assert active.info.run_id == run.run_id
        assert mlflow.active_run() is None
        assert status(server.client, run.run_id) == "RUNNING"
    assert status(server.client, run.run_id) == "FINISHED"
