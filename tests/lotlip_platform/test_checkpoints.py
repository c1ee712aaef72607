from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lotlip.data.store import FolderStore, Store
from lotlip.errors import CheckpointError, ConfigError, DataError
from lotlip_platform import checkpoints as module
from lotlip_platform.checkpoints import CheckpointConfig, Checkpoints, Saver, Writer
from lotlip_platform.storage import ensure_bucket, open_store

ALONE = Writer(life="a", rank=0, num_workers=1)


class Recording:
    """A store that remembers the order of its changes, and may refuse some of them."""

    def __init__(self, store: Store) -> None:
        self._store, self.changes, self.refused = store, [], []
        self.refuse_at: int | None = None
        self.refuse: str = ""

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    def write(self, name: str, data: bytes) -> None:
        self._change("write", name)
        self._store.write(name, data)

    def delete(self, name: str) -> None:
        self._change("delete", name)
        self._store.delete(name)

    def _change(self, verb: str, name: str) -> None:
        if len(self.changes) == self.refuse_at:
            raise KeyboardInterrupt
        if self.refuse and self.refuse in name:
            self.refused.append(name)
            raise DataError("the store is full")
        self.changes.append((verb, name.removeprefix("checkpoints/")))


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "run")
    request.getfixturevalue("s3_env")
    uri = f"s3://checkpoints/{tmp_path.name}"
    ensure_bucket(uri)
    return open_store(uri)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES_S", (0.01, 0.01))


def write(
    store: Store, step: int, *shares: bytes, keep: CheckpointConfig | None = None, life: str = "a"
) -> None:
    """A checkpoint of as many workers as there are shares."""
    checkpoints = Checkpoints(store)
    writers = [Writer(life=life, rank=k, num_workers=len(shares)) for k in range(len(shares))]
    for writer, share in zip(writers, shares, strict=True):
        checkpoints.write_share(step, writer, share)
    checkpoints.commit(step, checkpoints.await_shares(step, writers[0]), None)
    checkpoints.prune(step, keep or CheckpointConfig())


def latest(store: Store) -> tuple[str, list[bytes]] | None:
    def no_damage(note: str) -> None:
        raise AssertionError(note)

    return Checkpoints(store).latest(no_damage)


def test_a_checkpoint_counts_only_once_its_commit_is_there(store: Store) -> None:
    assert latest(store) is None
    recording = Recording(store)
    write(recording, 5, b"five", b"5")
    assert [name for _, name in recording.changes] == [
        *(f"step-00000005/a-0-of-2.{kind}" for kind in ("safetensors", "json")),
        *(f"step-00000005/a-1-of-2.{kind}" for kind in ("safetensors", "json")),
        "step-00000005/commit.json",
    ]
    for refuse_at in range(5, 10):
        recording.refuse_at = refuse_at
        with pytest.raises(KeyboardInterrupt):
            write(recording, 10, b"ten", b"10", life=f"life{refuse_at}")
        assert latest(store) == (f"{store.uri}/checkpoints/step-00000005", [b"five", b"5"])
        recording.changes = recording.changes[:5]


def test_what_a_dead_life_left_is_not_taken_for_a_share(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(store)
    dead, living = (Writer(life=life, rank=1, num_workers=2) for life in ("dead", "living"))
    checkpoints.write_share(5, dead, b"old")
    checkpoints.write_share(5, Writer(life="living", rank=0, num_workers=2), b"one")
    monkeypatch.setattr(module, "_SHARES_S", 0.3)
    with pytest.raises(DataError, match=r"share of worker 1 is missing in .*step-00000005 after"):
        checkpoints.await_shares(5, living)
    checkpoints.write_share(5, living, b"two")
    checkpoints.commit(5, checkpoints.await_shares(5, living), None)
    assert latest(store) == (f"{store.uri}/checkpoints/step-00000005", [b"one", b"two"])


def steps_in(store: Store) -> set[int]:
    return {int(name.split("/")[1][5:]) for name in store.list("checkpoints/")}


def test_only_the_newest_checkpoints_are_kept(store: Store) -> None:
    for step in (1, 2, 10, 100_000_000):
        write(store, step, b"%d" % step)
    assert steps_in(store) == {10, 100_000_000}
    found = latest(store)
    assert found is not None
    assert found[1] == [b"100000000"]


def test_the_best_checkpoints_are_kept_besides(store: Store) -> None:
    checkpoints = Checkpoints(store)
    config = CheckpointConfig(keep_last=1, keep_best=2)
    for step, metric in ((1, 0.5), (2, 0.9), (3, None), (4, 0.7), (5, 0.1), (6, None)):
        checkpoints.write_share(step, ALONE, b"")
        checkpoints.commit(step, checkpoints.await_shares(step, ALONE), metric)
        checkpoints.prune(step, config)
    assert steps_in(store) == {2, 4, 6}


def test_a_share_of_the_next_checkpoint_outlives_the_pruning(store: Store) -> None:
    checkpoints = Checkpoints(store)
    write(store, 1, b"one")
    checkpoints.write_share(3, Writer(life="a", rank=1, num_workers=2), b"early")
    write(store, 2, b"two", keep=CheckpointConfig(keep_last=1))
    assert steps_in(store) == {2, 3}
    checkpoints.drop_later(2)  # as a life does that begins there
    assert steps_in(store) == {2}


def test_a_removal_that_was_cut_short_leaves_no_checkpoint_behind(store: Store) -> None:
    write(store, 1, b"one")
    recording = Recording(store)
    recording.refuse_at = 4
    with pytest.raises(KeyboardInterrupt):
        write(recording, 2, b"two", keep=CheckpointConfig(keep_last=1))
    assert recording.changes[3] == ("delete", "step-00000001/commit.json")
    assert store.exists("checkpoints/step-00000001/a-0-of-1.safetensors")
    store.delete("checkpoints/step-00000002/commit.json")
    assert latest(store) is None


@pytest.mark.parametrize("damage", ["torn", "changed", "missing", "commit", "no object"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(store: Store, damage: str) -> None:
    write(store, 1, b"first")
    write(store, 2, b"second", b"share")
    share, commit = (
        f"checkpoints/step-00000002/{name}" for name in ("a-1-of-2.safetensors", "commit.json")
    )
    if damage == "missing":
        store.delete(share)
    elif damage in ("commit", "no object"):
        store.write(commit, b'{"sha' if damage == "commit" else b"[]")
    else:
        store.write(share, b"sha" if damage == "torn" else b"sharp")
    notes: list[str] = []
    found = Checkpoints(store).latest(notes.append)
    assert found == (f"{store.uri}/checkpoints/step-00000001", [b"first"])
    assert len(notes) == 1
    assert "step-00000002 is damaged" in notes[0]


def test_training_starts_anew_when_every_checkpoint_is_damaged(store: Store) -> None:
    for step in (1, 2):
        write(store, step, b"%d" % step)
        store.write(f"checkpoints/step-0000000{step}/a-0-of-1.safetensors", b"")
    notes: list[str] = []
    assert Checkpoints(store).latest(notes.append) is None
    assert len(notes) == 2


def test_a_store_that_fails_is_not_taken_for_damage(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    write(store, 1, b"first")

    class Failing(FolderStore):
        def read(self, name: str) -> bytes:
            if name.endswith(".safetensors"):
                raise DataError("the store is away")
            return super().read(name)

    with pytest.raises(DataError, match="the store is away"):
        latest(Failing(tmp_path))


def saver_of(store: Store, notes: list[str], writer: Writer = ALONE, **config: int) -> Saver:
    return Saver(Checkpoints(store), writer, CheckpointConfig(**config), notes.append)


def save(saver: Saver, step: int, told: list[str]) -> None:
    saver.save(
        step,
        b"%d" % step,
        metric=None,
        before_commit=lambda: told.append(f"before {step}"),
        after_commit=lambda: told.append(f"after {step}"),
    )


def test_a_save_goes_on_beside_training_and_the_next_one_waits_for_it(tmp_path: Path) -> None:
    gate = threading.Event()

    class Slow(FolderStore):
        def write(self, name: str, data: bytes) -> None:
            assert gate.wait(20)
            super().write(name, data)

    told: list[str] = []
    saver = saver_of(Slow(tmp_path), [])
    save(saver, 1, told)
    assert latest(FolderStore(tmp_path)) is None
    threading.Timer(0.2, gate.set).start()
    save(saver, 2, told)
    assert told[:2] == ["before 1", "after 1"]
    saver.finish()
    assert told == ["before 1", "after 1", "before 2", "after 2"]
    assert steps_in(FolderStore(tmp_path)) == {1, 2}


def test_failed_saves_are_noted_and_too_many_in_a_row_end_the_run(store: Store) -> None:
    recording, notes, told = Recording(store), [], []
    saver = saver_of(recording, notes, max_failed_saves=2)
    save(saver, 1, told)
    recording.refuse = "step-00000002/"
    save(saver, 2, told)
    save(saver, 3, told)  # waits for the one before
    saver.finish()
    assert recording.refused == ["checkpoints/step-00000002/a-0-of-1.safetensors"] * 3
    assert notes == [
        "saving a checkpoint failed (the store is full): training goes on, 1 of "
        "checkpoint.max_failed_saves=2"
    ]
    recording.refuse = "step-0000000"
    save(saver, 4, told)
    save(saver, 5, told)
    with pytest.raises(DataError, match="the store is full"):
        save(saver, 6, told)
    assert [note.split()[-3] for note in notes] == ["1", "1", "2"]
    assert told == ["before 1", "after 1", "before 3", "after 3"]
    found = latest(store)
    assert found is not None
    assert found[1] == [b"3"]


def test_a_last_save_that_fails_is_an_error(tmp_path: Path) -> None:
    recording = Recording(FolderStore(tmp_path))
    recording.refuse = "commit.json"
    saver = saver_of(recording, [])
    save(saver, 1, [])
    with pytest.raises(DataError, match="the store is full"):
        saver.finish()


def test_a_last_save_that_fails_is_tried_as_often_as_saves_may_fail(tmp_path: Path) -> None:
    recording, notes, told = Recording(FolderStore(tmp_path)), [], []
    recording.refuse = "commit.json"
    saver = saver_of(recording, notes, max_failed_saves=3)

    def note(text: str) -> None:
        notes.append(text)
        recording.refuse = "commit.json" if len(notes) < 2 else "nothing"

    saver._note = note
    save(saver, 1, told)
    saver.finish()
    assert len(notes) == 2
    assert told[-1] == "after 1"
    assert steps_in(FolderStore(tmp_path)) == {1}


def test_an_error_that_nobody_foresaw_is_no_success(tmp_path: Path) -> None:
    saver = saver_of(FolderStore(tmp_path), [])

    def fail() -> None:
        raise RuntimeError("what now")

    saver.save(1, b"one", metric=None, before_commit=fail, after_commit=fail)
    with pytest.raises(CheckpointError, match="RuntimeError: what now"):
        saver.finish()
    assert latest(FolderStore(tmp_path)) is None


def test_a_worker_other_than_the_first_writes_its_share_only(tmp_path: Path) -> None:
    told: list[str] = []
    saver = saver_of(FolderStore(tmp_path), [], Writer(life="a", rank=1, num_workers=2))
    save(saver, 1, told)
    saver.finish()
    assert told == []
    assert sorted(path.name for path in tmp_path.rglob("a-*")) == [
        "a-1-of-2.json",
        "a-1-of-2.safetensors",
    ]
    assert latest(FolderStore(tmp_path)) is None


@pytest.mark.parametrize("name", ["keep_last", "keep_best", "max_failed_saves"])
def test_a_config_out_of_range_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"checkpoint\.{name}=-1 must be"):
        CheckpointConfig(**{name: -1})
