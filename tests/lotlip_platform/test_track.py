"""Runs that MLflow takes for running, and what became of them."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from lotlip.data.store import FolderStore
from lotlip_platform.journal import Journal, journal, journals
from lotlip_platform.ownership import _machine
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.sender import ID_TAG, Sender
from lotlip_platform.track import reconcile, sync
from lotlip_platform.tracking import connect

COUNT = itertools.count()


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A database of the test's own, with no other test's runs in it."""
    return f"sqlite:///{tmp_path}/runs.db"


@pytest.fixture
def client(uri: str) -> MlflowClient:
    return connect(uri).client


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(FolderStore(tmp_path / "run"))
    folder.write_tracked({"journal": "elsewhere"})
    return folder


def begun(client: MlflowClient, folder: str) -> str:
    """A run that a process began somewhere, and never ended."""
    tags = {ID_TAG: "elsewhere", "run_folder": folder}
    run_id = client.create_run("0", tags=tags, run_name="run").info.run_id
    client.log_metric(run_id, "train/loss", 1.0, timestamp=1_700_000_000_000, step=1)
    return run_id


def info(client: MlflowClient, run_id: str) -> tuple[str, int | None]:
    found = client.get_run(run_id).info
    return found.status, found.end_time


def test_a_run_with_a_result_was_finished(
    client: MlflowClient, uri: str, folder: RunFolder
) -> None:
    run_id = begun(client, folder.uri)
    folder.write_result({"steps": 8})
    assert list(reconcile(uri)) == [f"run: FINISHED, run {run_id}"]
    assert info(client, run_id) == ("FINISHED", 1_700_000_000_000)
    assert client.get_run(run_id).data.tags["ended_by"] == "lotlip track reconcile"
    assert list(reconcile(uri)) == []


def test_a_run_that_nobody_is_at_work_on_was_killed(
    client: MlflowClient, uri: str, folder: RunFolder
) -> None:
    run_id = begun(client, folder.uri)
    folder.write_owner({"token": "t", "host": "h", "machine": _machine(), "pid": 1, "created": 1.0})
    assert list(reconcile(uri)) == [f"run: KILLED, run {run_id}"]
    assert info(client, run_id) == ("KILLED", 1_700_000_000_000)


def test_a_run_that_somebody_is_at_work_on_is_left_alone(
    client: MlflowClient, uri: str, folder: RunFolder
) -> None:
    run_id = begun(client, folder.uri)
    me = psutil.Process()
    owner: dict[str, Any] = {"token": "t", "host": "h", "machine": _machine(), "pid": me.pid}
    folder.write_owner({**owner, "created": me.create_time(), "beat": 0})
    assert list(reconcile(uri)) == ["run: is at work elsewhere"]
    assert info(client, run_id)[0] == "RUNNING"


def test_a_run_whose_folder_cannot_be_seen_is_left_alone(
    client: MlflowClient, uri: str, tmp_path: Path
) -> None:
    run_id = begun(client, str(tmp_path / "on-another-machine"))
    (line,) = reconcile(uri)
    assert "left as it is" in line
    assert "on-another-machine can't be seen from here" in line
    assert info(client, run_id)[0] == "RUNNING"


def test_runs_of_others_are_none_of_our_business(client: MlflowClient, uri: str) -> None:
    run_id = client.create_run("0").info.run_id
    assert list(reconcile(uri)) == []
    assert info(client, run_id)[0] == "RUNNING"


def test_many_runs_are_all_looked_at(client: MlflowClient, uri: str, folder: RunFolder) -> None:
    for _ in range(3):
        begun(client, folder.uri)
    assert len(list(reconcile(uri))) == 3


def begin(kept: Journal, uri: str) -> None:
    options: dict[str, Any] = {"params": {}, "tags": {"run_folder": "/nowhere"}, "run_id": ""}
    kept.append("open", life=1, uri=uri, experiment="tests", name="run", **options)


def test_a_run_at_work_here_is_neither_sent_nor_ended(client: MlflowClient, uri: str) -> None:
    kept = journal("mine")
    begin(kept, uri)
    Sender(kept).send()
    with kept.owned():
        assert [outcome.text for outcome in sync()] == [
            "run: is at work here, and being sent meanwhile"
        ]
        assert list(reconcile(uri)) == ["run: is at work here"]
    assert info(client, kept.sent().run_id)[0] == "RUNNING"


def test_a_journal_that_another_process_sends_is_left_to_it(uri: str) -> None:
    kept = journal("mine")
    begin(kept, uri)
    with kept.sending():
        (outcome,) = sync()
    assert outcome.text == "run: is being sent by another process"
    assert not kept.is_sent


def test_what_is_sent_is_removed_and_what_was_refused_is_told(
    client: MlflowClient, uri: str
) -> None:
    kept = journal("mine")
    begin(kept, uri)
    kept.append("metrics", step=1, values={"bad(name)": 1.0})
    time.sleep(0.01)
    last = max(entry["time_ms"] for entry, _ in kept.read(0))
    (outcome,) = sync()
    assert outcome.is_done
    assert "\n  refused: " in outcome.text
    assert journals() == []
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert (run.info.status, run.info.end_time) == ("KILLED", last)


def test_a_folder_of_the_same_name_that_holds_another_run_tells_nothing(
    client: MlflowClient, uri: str, folder: RunFolder
) -> None:
    run_id = begun(client, folder.uri)
    folder.write_tracked({"journal": "that of another run"})
    folder.write_result({"steps": 8})
    (line,) = reconcile(uri)
    assert "can't be seen from here" in line
    assert info(client, run_id)[0] == "RUNNING"
