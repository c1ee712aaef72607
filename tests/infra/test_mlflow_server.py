"""MLflow's server as compose.yaml starts it, on a real PostgreSQL, and what the runbook does to it.

PostgreSQL is this machine's, not the image's; S3 is simulated; nothing runs in containers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import mlflow
import pytest
import requests
from compose_file import read_compose
from mlflow.exceptions import MlflowException
from mlflow_machine import BINARIES, MlflowMachine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str) -> Iterator[MlflowMachine]:
    if BINARIES is None:
        pytest.skip("needs PostgreSQL's server: apt-get install postgresql")
    machine = MlflowMachine(tmp_path_factory.mktemp("machine"), s3_endpoint)
    # Apart from pytest's folder, into which PostgreSQL's user can't look.
    folder = Path(tempfile.mkdtemp(prefix="lotlip-postgres-", dir="/tmp"))
    try:
        machine.start_postgres(folder)
        machine.run_service("buckets")
        machine.start()
        machine.run_service("accounts")
        yield machine
    finally:
        machine.stop()
        with contextlib.suppress(AssertionError):
            machine.end_postgres(folder)
        shutil.rmtree(folder)


@pytest.fixture
def client(machine: MlflowMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """MLflow's client as Ray's nodes have it: the login is a file in the home."""
    (secret,) = [
        each["target"]
        for each in read_compose()["services"]["ray-worker"]["secrets"]
        if isinstance(each, dict) and each["source"] == "mlflow_user"
    ]
    file = tmp_path / Path(secret).relative_to("/home/lotlip")
    file.parent.mkdir()
    shutil.copy(machine.secrets / "mlflow_user", file)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, text in machine.service("ray-worker").environment().items():
        if name.startswith("MLFLOW_"):
            monkeypatch.setenv(name, text)
    return mlflow.MlflowClient(machine.url)


def as_user(monkeypatch: pytest.MonkeyPatch, user: str, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def test_without_a_password_it_tells_its_health_and_nothing_else(machine: MlflowMachine):
    runs = "/api/2.0/mlflow/experiments/search?max_results=1"
    wrong = {"Authorization": "Basic YWRtaW46cGFzc3dvcmQxMjM0"}
    assert machine.status("/health") == 200
    assert machine.status(runs) == 401
    assert machine.status(runs, wrong) == 401
    assert machine.status(runs, {"Host": "elsewhere.example"}) == 403
    assert machine.status("/") == 401


def test_a_run_with_artifacts_goes_through_it_into_database_and_bucket(
    machine: MlflowMachine, client: Any, s3_env: str
):
    run = client.create_run(client.create_experiment("through"))
    client.log_metric(run.info.run_id, "train/loss", 0.5, step=3)
    client.log_text(run.info.run_id, "what was seen", "notes/note.txt")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert client.get_run(run.info.run_id).data.metrics == {"train/loss": 0.5}
    s3 = boto3.client("s3")
    objects = s3.list_objects_v2(Bucket="mlflow")["Contents"]
    assert [each["Key"].rpartition("/")[2] for each in objects] == ["note.txt"]
    assert s3.get_bucket_versioning(Bucket="mlflow")["Status"] == "Enabled"
    found = machine.in_postgres("psql --tuples-only mlflow --command 'SELECT key FROM metrics'")
    assert found.split() == ["train/loss"]


def test_a_client_need_not_reach_the_store(
    machine: MlflowMachine, client: Any, monkeypatch: pytest.MonkeyPatch
):
    run = client.create_run(client.create_experiment("from afar"))
    asked: set[str] = set()
    send = requests.Session.send

    def noted(self: requests.Session, request: Any, **options: Any) -> Any:
        asked.add(urlsplit(request.url).netloc)
        return send(self, request, **options)

    monkeypatch.setattr(requests.Session, "send", noted)
    client.log_text(run.info.run_id, "far away", "note.txt")
    note = client.download_artifacts(run.info.run_id, "note.txt")
    assert Path(note).read_text() == "far away"
    assert asked == {urlsplit(machine.url).netloc}
    # Those outside have the same settings from client.env.
    outside = (machine.secrets / "client.env").read_text()
    for name in ("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"):
        assert f"{name}='{os.environ[name]}'" in outside


def test_a_colleague_works_on_a_run_but_does_not_delete_it(
    machine: MlflowMachine, client: Any, monkeypatch: pytest.MonkeyPatch
):
    run = client.create_run(client.create_experiment("shared")).info.run_id
    as_user(monkeypatch, "anna", machine.follow("renew-person", NAME="anna").strip())
    client.set_tag(run, "seen by", "anna")
    with pytest.raises(MlflowException, match="Permission denied"):
        client.delete_run(run)
    assert client.get_run(run).data.tags["seen by"] == "anna"


def test_a_dump_brings_back_runs_models_aliases_and_users_and_forgets_what_came_later(
    machine: MlflowMachine, client: Any
):
    experiment = client.create_experiment("kept")
    run = client.create_run(experiment)
    client.log_metric(run.info.run_id, "train/loss", 0.25, step=1)
    client.log_text(run.info.run_id, "kept", "note.txt")
    client.create_registered_model("lotlip")
    version = client.create_model_version("lotlip", run.info.artifact_uri, run.info.run_id)
    client.set_registered_model_alias("lotlip", "champion", version.version)
    machine.follow("backup")
    later = client.create_run(experiment)
    client.delete_registered_model_alias("lotlip", "champion")

    machine.follow("restore")

    assert client.get_run(run.info.run_id).data.metrics == {"train/loss": 0.25}
    assert client.get_model_version_by_alias("lotlip", "champion").run_id == run.info.run_id
    note = client.download_artifacts(run.info.run_id, "note.txt")
    assert Path(note).read_text() == "kept"
    # What isn't there is not allowed, either.
    with pytest.raises(MlflowException, match="Permission denied"):
        client.get_run(later.info.run_id)


def test_upgrading_a_database_that_is_up_to_date_changes_nothing(
    machine: MlflowMachine, client: Any
):
    run = client.create_run(client.create_experiment("upgraded"))
    machine.follow("upgrade")
    assert client.get_run(run.info.run_id).info.status == "RUNNING"


def test_passwords_are_renewed_and_old_ones_refused(
    machine: MlflowMachine, client: Any, monkeypatch: pytest.MonkeyPatch
):
    logins = {}
    for name in ("mlflow_admin", "mlflow_user"):
        logins[name] = machine.login(name)
        machine.follow(name.replace("mlflow_", "renew-"))
        assert machine.login(name) != logins[name]
    for name, old in logins.items():
        as_user(monkeypatch, *old)
        with pytest.raises(MlflowException, match="401"):
            client.search_experiments()
        as_user(monkeypatch, *machine.login(name))
        assert client.search_experiments()


def test_the_password_of_the_database_is_renewed(machine: MlflowMachine, client: Any):
    shutil.copy(machine.secrets / "postgres", machine.secrets / "postgres.before")
    machine.follow("renew-postgres")
    (machine.secrets / "postgres.before").unlink()
    assert client.search_experiments()
    assert "1" in machine.in_postgres("psql --tuples-only mlflow --command 'SELECT 1'")
