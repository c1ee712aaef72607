from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lotlip.errors import ConfigError, DataError, TrackingError
from lotlip_platform import local_services, service_process
from lotlip_platform.storage import ensure_bucket, open_store

OWN_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "MLFLOW_TRACKING_URI",
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own, on ports of its own, that is down again after the test."""
    monkeypatch.setenv("LOTLIP_HOME", str(tmp_path / "home"))
    for name in OWN_VARIABLES:
        # setenv first, so that what a test puts there is undone, too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    ports = {name: service_process.port_or_free(0) for name in local_services.PREFERRED_PORTS}
    monkeypatch.setattr(local_services, "PREFERRED_PORTS", ports)
    yield tmp_path / "home"
    local_services.down()


def processes_of(service: service_process.Service) -> list[int]:
    """Process ids of the service's session."""
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == service.pid:
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


def test_s3_and_mlflow_come_up_once_and_leave_nothing_behind(own_home: Path) -> None:
    first = local_services.up(("mlflow", "s3"))
    assert list(first) == ["s3", "mlflow"]
    with urllib.request.urlopen(first["mlflow"].url + "/health") as answer:
        assert answer.read() == b"OK"
    assert len(processes_of(first["mlflow"])) == 2
    assert local_services.up(("s3", "mlflow")) == first
    assert local_services.down() == ["s3", "mlflow"]
    assert [pid for service in first.values() for pid in processes_of(service)] == []
    assert local_services.services() == {}
    assert not (own_home / "services.json").exists()
    assert local_services.down() == []


def test_clients_find_the_local_store_through_the_environment() -> None:
    assert local_services.environment() == {}
    service = local_services.up(("s3",))["s3"]
    variables = local_services.use_local_services()
    assert variables["AWS_ENDPOINT_URL"] == service.url == os.environ["AWS_ENDPOINT_URL"]
    assert local_services.environment() == variables
    ensure_bucket("s3://bucket")
    open_store("s3://bucket").write("x", b"data" * 2_000_000)
    assert open_store("s3://bucket").read("x") == b"data" * 2_000_000


@pytest.mark.parametrize(
    "variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"]
)
def test_the_users_own_store_is_never_mixed_with_the_local_one(
    variable: str, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    me = psutil.Process()
    own_home.mkdir()
    entry = service_process.Service("s3", "http://h", "http://h", (), me.pid, me.create_time())
    local_services._record({"s3": entry})
    assert local_services.environment()["AWS_ACCESS_KEY_ID"] == "lotlip"
    monkeypatch.setenv(variable, "mine")
    assert local_services.environment() == {}
    local_services._record({})


def test_a_port_in_use_is_left_to_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        taken = owner.getsockname()[1]
        monkeypatch.setitem(local_services.PREFERRED_PORTS, "s3", taken)
        said: list[str] = []
        service = local_services.up(("s3",), said.append)["s3"]
    assert not service.url.endswith(f":{taken}")
    assert any(f"port {taken} is in use" in line for line in said)


def test_a_killed_service_is_started_again_by_up() -> None:
    first = local_services.up(("s3",))["s3"]
    victim = psutil.Process(first.pid)
    victim.kill()
    victim.wait(5)
    assert local_services.services() == {}
    second = local_services.up(("s3",))["s3"]
    assert second.pid != first.pid
    assert second.url == first.url


def test_what_a_killed_service_left_behind_is_ended() -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
    home = local_services.home()
    home.mkdir()
    pid, created = service_process.start(
        [sys.executable, "-c", code], folder=home, log=home / "log", environment=os.environ
    )
    service = service_process.Service("mlflow", "", "", (), pid, created)
    local_services._record({"mlflow": service})
    while not (children := psutil.Process(pid).children()):
        time.sleep(0.05)
    psutil.Process(pid).kill()
    psutil.Process(pid).wait(5)
    assert children[0].is_running()
    assert local_services.down() == []
    assert not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE


def test_a_process_that_inherited_a_recorded_number_is_spared() -> None:
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        local_services.home().mkdir()
        created = psutil.Process(stranger.pid).create_time() - 1000
        stale = service_process.Service("s3", "http://h", "http://h", (), stranger.pid, created)
        local_services._record({"s3": stale})
        assert local_services.services() == {}
        assert local_services.down() == []
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_two_ups_at_once_start_one_service() -> None:
    said: list[str] = []
    threads = [
        threading.Thread(target=local_services.up, args=(("s3",), said.append)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([line for line in said if line.startswith("starting s3")]) == 1
    assert list(local_services.services()) == ["s3"]


def test_a_service_that_cannot_start_shows_the_line_of_its_log(own_home: Path) -> None:
    own_home.mkdir()
    (own_home / "mlflow").mkdir()
    (own_home / "mlflow" / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(TrackingError, match=r"^mlflow ended: .*; see .*mlflow.log$") as error:
        local_services.up(("mlflow",))
    assert "\n" not in str(error.value)
    assert local_services.services() == {}


def test_a_service_that_never_answers_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_services, "START_TIMEOUT_S", 0.0)
    with pytest.raises(DataError, match="s3 did not answer within 0 s"):
        local_services.up(("s3",))
    assert json.loads((local_services.home() / "services.json").read_text()) == {}


def test_an_unknown_service_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no local service 'redis'"):
        local_services.up(("redis",))


RAY_SCRIPT = """
import os
from lotlip_platform.local_services import use_local_services
use_local_services()
import ray
ray.init(log_to_driver=False, logging_level="error")
names = ("AWS_ENDPOINT_URL", "OMP_WAIT_POLICY", "RAY_ADDRESS")
read = ray.remote(lambda: [os.environ.get(name) for name in names])
print("workers see", *ray.get(read.remote()), ray.cluster_resources()["CPU"])
"""


@pytest.mark.slow
def test_ray_comes_up_on_this_machine_only_and_leaves_nothing_behind() -> None:
    found = local_services.up(("s3", "ray"))
    ray = found["ray"]
    output = subprocess.run(
        [sys.executable, "-c", RAY_SCRIPT], capture_output=True, text=True, timeout=120
    )
    expected = f"workers see {found['s3'].url} PASSIVE {ray.address} {local_services._num_cpus()}.0"
    assert expected in output.stdout, output.stderr
    family = [psutil.Process(ray.pid), *psutil.Process(ray.pid).children(recursive=True)]
    listening = set()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # the script's own may just have ended
            listening |= {
                connection.laddr.ip.removeprefix("::ffff:")
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
    assert listening == {"127.0.0.1"}
    start = time.monotonic()
    assert local_services.down() == ["s3", "ray"]
    assert time.monotonic() - start < 30
    assert not [process for process in family if process.is_running()]
    shutil.rmtree(local_services._ray_folder())


def test_a_disk_that_is_too_small_is_told_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("LOTLIP_HOME", str(tmp_path / "not" / "yet" / "there"))
    local_services.require_disk(1)
    with pytest.raises(DataError, match=r"GB of disk left.*set LOTLIP_HOME to a folder elsewhere"):
        local_services.require_disk(10**18)
