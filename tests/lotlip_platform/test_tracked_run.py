"""The processes around a run: what a server, a signal or a full disk does to one of them."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from lotlip.errors import TrackingError
from lotlip_platform import sender_process
from lotlip_platform.journal import Journal, journal, journals
from lotlip_platform.local_services import home
from lotlip_platform.track import sync
from lotlip_platform.tracked_run import TrackedRun, open_run
from lotlip_platform.tracking import connect

PROGRAM = """
import sys, time
from lotlip_platform.journal import journal
from lotlip_platform.tracked_run import open_run
with open_run(journal(sys.argv[2]), uri=sys.argv[1], experiment="tests", name="killed", params={},
              tags={}, life=1, note=lambda text: None) as run:
    run.log_metrics({"train/loss": 1.0}, 1)
    print("begun", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's absence is noticed sooner."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sender_process, "_GRACE_S", 1.0)


@pytest.fixture
def client(mlflow_server: str) -> MlflowClient:
    return connect(mlflow_server).client


def mine() -> Journal:
    """The journal of a test; the server, which they share, must not take it for another's."""
    return journal(home().parent.name)


@contextlib.contextmanager
def opened(uri: str, notes: list[str]) -> Iterator[TrackedRun]:
    with open_run(
        mine(),
        uri=uri,
        experiment="tests",
        name="one",
        params={"a": 1},
        tags={},
        life=1,
        note=notes.append,
    ) as run:
        yield run


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def run_id() -> str:
    return until(lambda: mine().sent().run_id)


def status(client: MlflowClient) -> str:
    return client.get_run(run_id()).info.status


def num_points(client: MlflowClient) -> int:
    return len(client.get_metric_history(run_id(), "train/loss"))


def senders(kept: Journal) -> list[psutil.Process]:
    """The processes that send a journal."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(kept.folder) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def gone(kept: Journal) -> bool:
    """Whether nobody sends it any more; a killed process holds its locks a moment longer."""
    try:
        with kept.sending():
            return not senders(kept)
    except BlockingIOError:
        return False


@pytest.mark.parametrize(
    ("error", "expected"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")],
)
def test_a_run_is_told_while_it_goes_on_and_ends_as_its_block_does(
    client: MlflowClient, mlflow_server: str, error: type[BaseException] | None, expected: str
) -> None:
    notes: list[str] = []
    with contextlib.suppress(ValueError, KeyboardInterrupt), opened(mlflow_server, notes) as run:
        run.log_metrics({"train/loss": 1.0}, 1)
        until(lambda: num_points(client))
        assert status(client) == "RUNNING"
        run.log_metrics({"train/loss": 0.5}, 2)
        run.attend()
        assert notes == [f"MLflow run {run_id()}"]
        if error is not None:
            raise error
    assert (status(client), num_points(client)) == (expected, 2)
    assert mine().is_sent
    assert gone(mine())
    assert len(notes) == 1


def test_a_second_process_cannot_open_the_run(mlflow_server: str) -> None:
    with (
        opened(mlflow_server, []),
        pytest.raises(TrackingError, match="another process on this machine"),
        opened(mlflow_server, []),
    ):
        pass


@contextlib.contextmanager
def training(url: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, url, mine().folder.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
        process.kill()


def test_a_run_of_a_killed_process_is_ended_as_killed(
    client: MlflowClient, mlflow_server: str
) -> None:
    with training(mlflow_server) as process:
        assert status(client) == "RUNNING"
        for sender in senders(mine()):
            sender.terminate()  # a stopping job signals everything at once
        process.kill()
    until(lambda: gone(mine()))
    assert (status(client), num_points(client)) == ("KILLED", 1)


def test_a_run_of_which_everything_was_killed_is_ended_by_the_next_sync(
    client: MlflowClient, mlflow_server: str
) -> None:
    with training(mlflow_server) as process:
        assert status(client) == "RUNNING"
        for sender in senders(mine()):
            sender.kill()
        process.kill()
    until(lambda: gone(mine()))
    assert status(client) == "RUNNING"
    found = run_id()
    (outcome,) = sync()
    assert outcome.text == f"killed: all in MLflow, run {found}"
    assert outcome.is_done
    assert journals() == []
    run = client.get_run(found)
    assert run.info.status == "KILLED"
    assert run.info.end_time < time.time() * 1000
    assert list(sync()) == []


def test_a_sender_that_was_killed_is_replaced(client: MlflowClient, mlflow_server: str) -> None:
    with opened(mlflow_server, []) as run:
        (sender,) = senders(mine())
        sender.kill()
        until(lambda: gone(mine()))
        run.log_metrics({"train/loss": 1.0}, 1)
        run.attend()
        until(lambda: num_points(client))
    assert status(client) == "FINISHED"


@pytest.fixture(scope="module")
def fragile(start_mlflow: Callable[[], Any]) -> Any:
    return start_mlflow()


def test_training_neither_waits_for_nor_dies_of_a_server_that_hangs(fragile: Any) -> None:
    notes: list[str] = []
    client = connect(fragile.url).client
    with opened(fragile.url, notes) as run:
        run.log_metrics({"train/loss": 3.0}, 1)
        until(lambda: num_points(client))
        fragile.signal(signal.SIGSTOP)
        began = time.monotonic()
        for step in range(2, 1000):
            run.log_metrics({"train/loss": 2.0}, step)
        run.log_file("figures/late.png", b"png")
        assert time.monotonic() - began < 1.0
        until(lambda: mine().sent().trouble)
        run.attend()
        assert "the run goes on" in notes[-1]
        left = time.monotonic()
    assert time.monotonic() - left < 10
    assert "lotlip track sync" in notes[-1]
    fragile.signal(signal.SIGCONT)
    until(lambda: gone(mine()))
    assert (status(client), num_points(client)) == ("FINISHED", 999)
    assert [f.path for f in client.list_artifacts(run_id(), "figures")] == ["figures/late.png"]


def test_a_server_that_is_away_from_start_to_end_gets_all_by_the_next_sync(fragile: Any) -> None:
    fragile.end()
    notes: list[str] = []
    with opened(fragile.url, notes) as run:
        run.log_metrics({"train/loss": 3.0}, 1)
        until(lambda: mine().sent().trouble)
        run.attend()
        run.log_metrics({"train/loss": 2.0}, 2)
    assert sum("no MLflow server at" in note for note in notes) == 1
    for sender in senders(mine()):
        sender.kill()
    until(lambda: gone(mine()))
    (outcome,) = sync()
    assert not outcome.is_done
    assert "Connection refused" in outcome.text
    fragile.start()
    fragile.wait_until_it_answers()
    (outcome,) = sync()
    assert outcome.is_done
    client = connect(fragile.url).client
    run = client.get_run(outcome.text.rpartition(" ")[2])
    assert (run.info.status, run.data.params) == ("FINISHED", {"a": "1"})
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 2


def test_a_server_that_comes_back_is_told_and_gets_the_rest(fragile: Any) -> None:
    fragile.end()
    notes: list[str] = []
    with opened(fragile.url, notes) as run:
        run.log_metrics({"train/loss": 3.0}, 1)
        until(lambda: mine().sent().trouble)
        run.attend()
        fragile.start()
        fragile.wait_until_it_answers()
        until(lambda: not mine().sent().trouble)
        run.attend()
        assert notes[-1] == "MLflow takes what is logged again"
    assert status(connect(fragile.url).client) == "FINISHED"


def test_a_full_disk_is_told_once_and_ends_no_training(mlflow_server: str, tmp_path: Path) -> None:
    program = tmp_path / "full.py"
    program.write_text(
        "import resource, sys\n"
        "from lotlip_platform.journal import journal\n"
        "from lotlip_platform.tracked_run import TrackedRun\n"
        "run = TrackedRun(journal('full'), None, lambda text: print(text))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for step in range(100):\n"
        "    run.log_metrics({'train/loss': 1.0}, step)\n"
        "run.log_file('figure.png', bytes(2000))\n"
        "print('trained')\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=True, env=os.environ
    )
    told = done.stdout.splitlines()
    assert told[-1] == "trained"
    assert len(told) == 2
    assert f"cannot write to {journal('full').folder} (No space left on device)" in told[0]
    assert len(list(journal("full").read(0))) > 5


def test_a_sender_ends_even_where_the_disk_takes_no_word_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine().append("open", life=1)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    ended = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        sender_process._await_end(mine(), 1, ended)
    assert ended.is_set()
    sender_process._await_end(mine(), 2, ended)
    assert mine().open_life() == 1, "another life's end is not its own to tell"
    sender_process._await_end(mine(), 1, ended)
    assert mine().open_life() == 0


def full(*given: Any, **content: Any) -> None:
    raise OSError(28, "No space left on device")
