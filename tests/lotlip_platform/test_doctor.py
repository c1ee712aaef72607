from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lotlip_platform import doctor, doctor_machine, doctor_services
from lotlip_platform.doctor import Finding, examine, render
from lotlip_platform.finding import masked
from lotlip_platform.storage import ensure_bucket, open_store

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "MLFLOW_TRACKING_URI",
    "RAY_ADDRESS",
)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is set up, whatever the user has."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOTLIP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))


@pytest.fixture
def dead_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(status: int, date: str) -> Iterator[str]:
    """A server that gives everybody the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            self.send_header("Date", date)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def http_date(seconds: float) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds))


def test_a_machine_with_nothing_set_up_has_no_errors_and_stays_clean(tmp_path):
    findings = examine()
    assert [finding for finding in findings if finding.state == "error"] == []
    by_name = {finding.name: finding for finding in findings}
    assert "torch " in by_name["packages"].found
    assert "not set up" in by_name["S3"].found
    assert "local one" in by_name["Ray"].found
    assert "store" not in by_name
    assert list(tmp_path.iterdir()) == []


def test_everything_dead_is_said_with_advice_and_without_secrets_in_seconds(monkeypatch, dead_port):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{dead_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{dead_port}")
    monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{dead_port}")
    begin = time.monotonic()
    findings = examine("s3://bucket/runs")
    assert time.monotonic() - begin < 30
    states = {finding.name: finding.state for finding in findings}
    assert [name for name, state in states.items() if state == "error"] == [
        *("S3", "store", "MLflow", "Ray")
    ]
    assert all(finding.advice for finding in findings if finding.state != "ok")
    text = render(findings)
    assert text.count("Connection refused") == 3
    for secret in (SECRET, "hunter2", "IOSFODNN7"):
        assert secret not in text
        assert secret not in repr(findings)
    assert "key AKIA…" in text
    (mlflow,) = (finding.found for finding in findings if finding.name == "MLflow")
    assert mlflow == f"http://127.0.0.1:{dead_port}: Connection refused"


def test_a_living_s3_endpoint_and_a_round_trip_leave_nothing_behind(s3_env):
    uri = f"s3://b{uuid.uuid4().hex}/runs"
    ensure_bucket(uri)
    assert doctor_services.s3().state == "ok"
    found = doctor_services.round_trip(uri)
    assert (found.state, found.advice) == ("ok", "")
    assert open_store(uri).list() == []


def test_a_bucket_that_does_not_exist_is_an_error_that_says_what_to_do(s3_env):
    (store,) = [f for f in examine("s3://nobody-made-this/x") if f.name == "store"]
    assert store.state == "error"
    assert "'nobody-made-this' does not exist" in store.found
    assert "create it" in store.found


def test_an_endpoint_without_credentials_is_a_warning(s3_env, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    found = doctor_services.s3()
    assert found.state == "warning"
    assert "AWS_ACCESS_KEY_ID" in found.advice


def test_mlflow_that_answers_is_fine_and_another_server_in_its_place_is_not(monkeypatch):
    with server(200, http_date(time.time())) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url.replace("://", "://me:secret@"))
        assert doctor_services.mlflow().state == "ok"
    with server(404, http_date(time.time())) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        found = doctor_services.mlflow()
        assert found.state == "error"
        assert "HTTP status 404" in found.found


def test_ray_is_tried_by_its_port_only(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        assert doctor_services.ray().state == "ok"
    assert doctor_services.ray().state == "error"


@pytest.mark.parametrize("address", ["somewhere", "ray://host", "host:port"])
def test_a_malformed_ray_address_is_named(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = doctor_services.ray()
    assert found.state == "error"
    assert address in found.found
    assert "HOST:PORT" in found.advice


@pytest.mark.parametrize(
    ("off_s", "state"), [(0, "ok"), (-200, "warning"), (2000, "error"), (-2000, "error")]
)
def test_the_clock_is_compared_with_that_of_the_endpoint(monkeypatch, off_s, state):
    with server(403, http_date(time.time() + off_s)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert doctor_services.clock().state == state


@pytest.mark.parametrize(("free_gb", "state"), [(0.5, "error"), (3.0, "warning"), (5.5, "ok")])
def test_little_disk_space_is_a_warning_and_less_an_error(monkeypatch, tmp_path, free_gb, state):
    usage = type(shutil.disk_usage("/"))(100, 50, int(free_gb * 1e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = doctor_machine.disk("disk", tmp_path / "not" / "there" / "yet")
    assert found.state == state
    assert f"{free_gb} GB free" in found.found
    assert ("TMPDIR" in found.advice) == (state != "ok")


def test_a_platform_package_that_hides_pythons_own_is_an_error(monkeypatch, tmp_path):
    assert doctor_machine.platform_module().state == "ok"
    (tmp_path / "platform").mkdir()
    monkeypatch.chdir(tmp_path)
    assert doctor_machine.platform_module().state == "ok"
    (tmp_path / "sub" / "platform").mkdir(parents=True)
    (tmp_path / "sub" / "platform" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path / "sub")
    found = doctor_machine.platform_module()
    assert found.state == "error"
    assert str(tmp_path / "sub" / "platform" / "__init__.py") in found.found


def test_a_missing_and_an_old_package_are_named(monkeypatch):
    wanted = ["numpy>=999", "lotlip-nowhere>=1", "pytest>=1; extra == 'dev'", "ray[default]>=2"]
    monkeypatch.setattr(doctor_machine.metadata, "requires", lambda name: wanted)
    found = doctor_machine.packages()
    assert found.state == "error"
    assert "lotlip-nowhere is missing" in found.found
    assert "is not >=999" in found.found
    assert "ray" not in found.found


def test_damaged_records_of_local_services_are_reported(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "services.json").write_text("[]")
    (found,) = [f for f in examine() if f.name == "local services"]
    assert found.state == "error"
    assert "is damaged" in found.found


def test_a_check_that_hangs_is_cut_off(monkeypatch):
    release = threading.Event()

    def hang() -> Finding:
        release.wait(60)
        return Finding("hanging", "ok", "")

    monkeypatch.setattr(doctor_services, "checks", lambda uri: {"hanging": hang})
    monkeypatch.setattr(doctor, "NETWORK_LIMIT_S", 0.2)
    found = examine()[-1]
    release.set()
    assert (found.name, found.state) == ("hanging", "error")
    assert "no answer within 0.2 s" in found.found


def test_the_table_is_aligned_and_shows_marks_and_advice():
    text = render(
        [
            Finding("a", "ok", "fine"),
            Finding("long name", "warning", "so so", "do this"),
            Finding("b", "error", "broken", "do that"),
        ]
    )
    assert text.splitlines() == [
        "✓ a          fine",
        "! long name  so so",
        "             → do this",
        "✗ b          broken",
        "             → do that",
    ]


def test_secrets_and_users_in_urls_are_masked(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-1234567890")
    finding = masked(Finding("a", "error", "tok-1234567890 at https://me:p@host/x", "not tok-12"))
    assert finding == Finding("a", "error", "*** at https://***@host/x", "not tok-12")
