from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

from lotlip.errors import ConfigError, TrackingError
from lotlip_platform import tracking
from lotlip_platform.local_services import local_tracking_uri
from lotlip_platform.tracking import AwayError, connect, tracking_uri
from lotlip_platform.tracking_address import TrackingConfig

PASSWORD = "correct-horse"


def test_an_experiment_must_have_a_name() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.experiment"):
        TrackingConfig(experiment="")


def refusal(uri: str, *, is_away: bool = False) -> str:
    began = time.monotonic()
    with pytest.raises(TrackingError) as error:
        connect(uri)
    assert isinstance(error.value, AwayError) == is_away
    assert time.monotonic() - began < 15
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_dead_server_is_told_in_one_line_within_seconds(dead_url: str) -> None:
    message = refusal(dead_url, is_away=True)
    assert f"no MLflow server at {dead_url} (" in message
    assert "Connection refused" in message


def test_a_server_that_accepts_but_never_answers_is_told_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "_ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "timed out" in refusal(url, is_away=True)


@pytest.mark.parametrize(
    ("uri", "is_away"),
    [
        ("http://", False),
        ("http://no-such-host.invalid", True),  # names come and go with their services
        ("ftp://host", False),
        ("http://a:b", False),
    ],
)
def test_an_address_that_is_none_is_told_in_one_line(uri: str, is_away: bool) -> None:
    assert uri in refusal(uri, is_away=is_away)


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


def test_a_server_that_fails_may_do_better_later() -> None:
    with answering(lambda request: 503) as host:
        assert "503" in refusal(f"http://{host}", is_away=True)


def test_a_database_file_is_the_same_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("sqlite:///runs.db") == f"sqlite:///{tmp_path}/runs.db"
    assert tracking_uri("sqlite:////data/runs.db") == "sqlite:////data/runs.db"


def test_without_a_server_runs_are_kept_in_the_lotlip_home(own_environment: Path) -> None:
    assert connect().uri == local_tracking_uri()
    assert list(own_environment.rglob("mlflow.db"))


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
    assert PASSWORD not in refusal(f"http://user:{PASSWORD}@{host}", is_away=True)


def test_resumed_makes_a_run_active_and_leaves_it_running(mlflow_server: str) -> None:
    client = connect(mlflow_server).client
    run_id = client.create_run("0").info.run_id
    with tracking.resumed(connect(), run_id):
        active = mlflow.active_run()
        assert active is not None
        assert active.info.run_id == run_id
    assert mlflow.active_run() is None
    assert client.get_run(run_id).info.status == "RUNNING"
    client.set_terminated(run_id)
