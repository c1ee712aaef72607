from __future__ import annotations

import json
from pathlib import Path

import pytest

from lotlip.data.store import FolderStore, Store
from lotlip.errors import DataError
from lotlip_platform.checkpoints import Checkpoints, Writer
from lotlip_platform.cleaning import find, remove
from lotlip_platform.cli import main
from lotlip_platform.ownership import Owner
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.storage import ensure_bucket, open_store


def make_run(store: Store, *, is_done: bool = True, has_model: bool = True, keep_best: int = 0):
    """A run's folder as training leaves it, with two checkpoints of two workers."""
    folder = RunFolder(store)
    store.write("config.json", json.dumps({"checkpoint": {"keep_best": keep_best}}).encode())
    checkpoints = Checkpoints(store)
    for step in (100, 200):
        writers = [Writer("life", rank, 2) for rank in (0, 1)]
        for writer in writers:
            checkpoints.write_share(step, writer, b"x" * 1000)
        checkpoints.commit(step, checkpoints.await_shares(step, writers[0]), None)
    store.write("metrics/step-00000200.jsonl", b"{}")
    if has_model:
        folder.write_model({"model.safetensors": b"weights", "config.json": b"{}"})
    if is_done:
        folder.write_result({"metrics": {}})
    return folder


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    store = FolderStore(tmp_path)
    make_run(store.at("done"))
    make_run(store.at("sweeps/tokens/trial-1"))
    make_run(store.at("going"), is_done=False)
    make_run(store.at("lost"), has_model=False)
    make_run(store.at("best"), keep_best=2)
    return tmp_path


def test_checkpoints_of_finished_runs_go_and_nothing_else(runs: Path) -> None:
    before = contents(runs)
    found = {one.run: one for one in find(str(runs))}
    assert {run: one.needed for run, one in found.items()} == {
        "best": "checkpoint.keep_best=2 asked to keep them",
        "done": "",
        "going": "not finished: the same command goes on from them",
        "lost": "its model is not there",
        "sweeps/tokens/trial-1": "",
    }
    assert contents(runs) == before
    sizes = sum(len(b) for name, b in before.items() if name.startswith("done/checkpoints/"))
    assert (found["done"].num_checkpoints, found["done"].num_bytes) == (2, sizes)
    freed = remove(str(runs), list(found.values()))
    assert freed == found["done"].num_bytes + found["sweeps/tokens/trial-1"].num_bytes
    gone = ("done/checkpoints/", "sweeps/tokens/trial-1/checkpoints/")
    assert contents(runs) == {n: b for n, b in before.items() if not n.startswith(gone)}
    assert [one.needed for one in find(str(runs)) if not one.needed] == []


def test_a_run_that_goes_on_meanwhile_keeps_what_it_has(runs: Path) -> None:
    found = find(str(runs))
    (runs / "done" / "result.json").unlink()
    remove(str(runs), found)
    assert [one.run for one in find(str(runs))] == ["best", "done", "going", "lost"]


def test_a_run_that_is_just_being_finished_is_left_alone(tmp_path: Path) -> None:
    folder = make_run(FolderStore(tmp_path / "done"))
    owner = Owner(folder)
    owner.take()
    assert find(str(tmp_path))[0].needed == "it is just being finished"
    owner.give_back()
    assert find(str(tmp_path))[0].needed == ""


def test_what_was_cut_off_half_way_is_removed_the_next_time(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = FolderStore.delete
    deleted: list[str] = []

    def dies(self: FolderStore, name: str) -> None:
        if len(deleted) == 3:
            raise KeyboardInterrupt
        deleted.append(name)
        delete(self, name)

    with monkeypatch.context() as dying:
        dying.setattr(FolderStore, "delete", dies)
        with pytest.raises(KeyboardInterrupt):
            remove(str(runs), find(str(runs)))
    assert [name.endswith("commit.json") for name in deleted] == [True, True, False]
    remove(str(runs), find(str(runs)))
    assert not list((runs / "done").glob("checkpoints/**/*.*"))


def test_the_folder_of_one_run_is_not_a_store_of_runs(runs: Path) -> None:
    with pytest.raises(DataError, match="is the folder of a run: give the folder that it lies in"):
        find(str(runs / "done"))


def test_the_command_only_tells_unless_it_is_to_delete(
    s3_env: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure_bucket("s3://cleaned")
    make_run(open_store("s3://cleaned/runs/done"))
    store = open_store("s3://cleaned/runs")
    before = store.list()
    assert main(["gc", "s3://cleaned/runs"]) == 0
    told = capsys.readouterr()
    assert "may go" in told.out
    assert "--delete removes them" in told.err
    assert store.list() == before
    assert main(["gc", "s3://cleaned/runs", "--delete"]) == 0
    assert "MB removed" in capsys.readouterr().err
    assert store.list() == [name for name in before if "/checkpoints/" not in name]
    assert main(["gc", "s3://cleaned/runs", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == []
    assert "nothing to remove" in told.err
