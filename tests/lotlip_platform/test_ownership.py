from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from lotlip.data.store import FolderStore
from lotlip.errors import CheckpointError, ConfigError
from lotlip_platform import ownership
from lotlip_platform.ownership import _machine, is_alive, owned
from lotlip_platform.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(FolderStore(tmp_path))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_BEAT_S", 0.2)
    monkeypatch.setattr(ownership, "_SILENCE_S", 3.0)
    monkeypatch.setattr(ownership, "_SETTLE_S", 0.1)


def record(**changes: Any) -> dict[str, Any]:
    me = psutil.Process()
    owner = {"token": "t", "host": "h", "machine": _machine(), "pid": me.pid, "beat": 0}
    return {**owner, "created": me.create_time(), **changes}


def test_a_run_has_one_owner_who_leaves_nothing_behind(folder: RunFolder) -> None:
    with owned(folder) as owner:
        owner.check()
        folder.check_owner(owner.token)
        with pytest.raises(CheckpointError, match="taken over"):
            folder.check_owner("another")
        with (
            pytest.raises(ConfigError, match=f"worked on by process {os.getpid()} on") as error,
            owned(folder),
        ):
            pass
        assert "\n" not in str(error.value)
    assert folder.read_owner() == {}
    with owned(folder):
        pass


def test_a_process_that_was_killed_owns_nothing(folder: RunFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        created = psutil.Process(process.pid).create_time()
        theirs = record(pid=process.pid, created=created)
        assert is_alive(folder, theirs)
        process.kill()
        time.sleep(0.5)
        assert not is_alive(folder, theirs)  # still a zombie
    assert not is_alive(folder, record(created=1.0))  # another process has its number
    folder.write_owner(theirs)
    with owned(folder):
        pass


def test_an_owner_on_another_machine_is_known_by_its_beat(folder: RunFolder) -> None:
    folder.write_owner(record(host="elsewhere", machine="elsewhere"))
    beats = threading.Event()

    def beat() -> None:
        for number in range(1, 40):
            if beats.wait(0.2):
                return
            folder.write_owner(record(host="elsewhere", machine="elsewhere", beat=number))

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(ConfigError, match="elsewhere"), owned(folder):
        pass
    beats.set()
    thread.join()
    began = time.monotonic()
    with owned(folder):
        assert time.monotonic() - began > 3.0  # it was given the time to show itself


def test_an_owner_elsewhere_that_ends_meanwhile_is_no_obstacle(folder: RunFolder) -> None:
    folder.write_owner(record(host="elsewhere", machine="elsewhere"))
    threading.Timer(0.5, folder.delete_owner).start()
    with owned(folder):
        pass


def test_who_seemed_dead_learns_that_another_has_taken_over(folder: RunFolder) -> None:
    with owned(folder) as owner:
        folder.write_owner(record(token="another"))
        time.sleep(1.0)
        with pytest.raises(ConfigError, match="taken over"):
            owner.check()
    assert folder.read_owner()["token"] == "another"


def test_of_two_that_come_at_once_one_is_told(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settle(seconds: float) -> None:
        folder.write_owner(record(token="another"))

    monkeypatch.setattr(ownership.time, "sleep", settle)
    with pytest.raises(ConfigError, match="taken over"), owned(folder):
        pass
