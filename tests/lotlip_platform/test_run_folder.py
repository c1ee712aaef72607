from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lotlip.data.pipeline import SampleTrace
from lotlip.data.store import FolderStore, Store
from lotlip.errors import CheckpointError, ConfigError, DataError
from lotlip.tokenizer import Tokenizer
from lotlip.train.trace import StepTrace
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.storage import ensure_bucket, open_store


@dataclass(frozen=True, kw_only=True)
class Group:
    width: int = 1
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Stands for any config: the folder knows but the names of three groups."""

    model: Group = field(default_factory=Group)
    cluster: Group = field(default_factory=Group)
    tracking: Group = field(default_factory=Group)
    checkpoint: Group = field(default_factory=Group)


class Recording:
    """A store that remembers the order of its changes, and may refuse from one of them on."""

    def __init__(self, store: Store) -> None:
        self._store, self.changes, self.refuse_at = store, [], -1

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
        self.changes.append((verb, name.removeprefix("checkpoints/")))


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "run")
    request.getfixturevalue("s3_env")
    uri = f"s3://runs/{tmp_path.name}"
    ensure_bucket(uri)
    return open_store(uri)


@pytest.fixture
def folder(store: Store) -> RunFolder:
    return RunFolder(store)


def no_damage(note: str) -> None:
    raise AssertionError(note)


def test_a_new_folder_holds_nothing(folder: RunFolder) -> None:
    folder.check_claim(Config(), "digest")
    assert folder.read_result() is None
    assert folder.read_tracked() == {}
    assert folder.read_tokenizer() is None
    assert folder.read_model() == {}
    assert folder.latest_checkpoint(no_damage) is None
    assert folder.store.list() == []


def test_the_same_config_claims_a_folder_again(folder: RunFolder) -> None:
    folder.claim(Config(), "digest")
    folder.check_claim(Config(), "digest")
    folder.claim(Config(), "digest")


def test_another_config_is_refused_with_the_key_that_differs(folder: RunFolder) -> None:
    folder.claim(Config(), "digest")
    with pytest.raises(ConfigError, match=r"another model\.width=1:.*name=") as error:
        folder.claim(Config(model=Group(width=2)), "digest")
    assert folder.uri in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"another model\.names=\['a'\]"):
        folder.check_claim(Config(model=Group(names=("a", "b"))), "digest")
    folder.check_claim(Config(), "digest")


@pytest.mark.parametrize("group", ["cluster", "tracking", "checkpoint"])
def test_what_does_not_change_the_learning_may_change(folder: RunFolder, group: str) -> None:
    folder.claim(Config(), "digest")
    folder.claim(replace(Config(), **{group: Group(width=9)}), "digest")


def test_other_data_under_the_same_address_is_refused(folder: RunFolder) -> None:
    folder.claim(Config(), "digest")
    with pytest.raises(ConfigError, match="another data_digest='digest'"):
        folder.check_claim(Config(), "of changed shards")


def test_a_damaged_config_is_told(folder: RunFolder) -> None:
    folder.store.write("config.json", b'{"model": ')
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        folder.check_claim(Config(), "digest")


def test_json_that_is_no_object_is_damage(folder: RunFolder) -> None:
    reads = {
        "config.json": lambda: folder.check_claim(Config(), "digest"),
        "run.json": folder.read_tracked,
        "result.json": folder.read_result,
    }
    for (name, read), content in zip(reads.items(), (b"[]", b"null", b"\xff\xfe"), strict=True):
        folder.store.write(name, content)
        with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
            read()


def test_a_checkpoint_counts_only_once_its_commit_is_there(folder: RunFolder) -> None:
    recording = Recording(folder.store)
    RunFolder(recording).save_checkpoint(5, b"five", keep_last=2)
    assert recording.changes == [
        ("write", "step-00000005/state.safetensors"),
        ("write", "step-00000005/commit.json"),
    ]
    recording.refuse_at = 3
    with pytest.raises(KeyboardInterrupt):
        RunFolder(recording).save_checkpoint(10, b"ten", keep_last=2)
    found = folder.latest_checkpoint(no_damage)
    assert found == (f"{folder.uri}/checkpoints/step-00000005", b"five")


def test_only_the_newest_checkpoints_are_kept(folder: RunFolder) -> None:
    for step in (1, 2, 10, 100_000_000):
        folder.save_checkpoint(step, b"%d" % step, keep_last=2)
    assert folder.store.list("checkpoints/") == [
        f"checkpoints/step-{step}/{name}"
        for step in ("00000010", "100000000")
        for name in ("commit.json", "state.safetensors")
    ]
    found = folder.latest_checkpoint(no_damage)
    assert found is not None
    assert found[1] == b"100000000"


def test_a_removal_that_was_cut_short_leaves_no_checkpoint_behind(folder: RunFolder) -> None:
    folder.save_checkpoint(1, b"one", keep_last=1)
    recording = Recording(folder.store)
    recording.refuse_at = 3
    with pytest.raises(KeyboardInterrupt):
        RunFolder(recording).save_checkpoint(2, b"two", keep_last=1)
    assert recording.changes[2] == ("delete", "step-00000001/commit.json")
    assert folder.store.exists("checkpoints/step-00000001/state.safetensors")
    folder.store.delete("checkpoints/step-00000002/commit.json")
    assert folder.latest_checkpoint(no_damage) is None


@pytest.mark.parametrize("damage", ["torn", "changed", "missing", "commit", "no object"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(
    folder: RunFolder, damage: str
) -> None:
    folder.save_checkpoint(1, b"first", keep_last=2)
    folder.save_checkpoint(2, b"second", keep_last=2)
    state, commit = (
        f"checkpoints/step-00000002/{name}" for name in ("state.safetensors", "commit.json")
    )
    if damage == "missing":
        folder.store.delete(state)
    elif damage in ("commit", "no object"):
        folder.store.write(commit, b'{"sha' if damage == "commit" else b"[]")
    else:
        folder.store.write(state, b"sec" if damage == "torn" else b"sEcond")
    notes: list[str] = []
    found = folder.latest_checkpoint(notes.append)
    assert found == (f"{folder.uri}/checkpoints/step-00000001", b"first")
    assert len(notes) == 1
    assert "step-00000002 is damaged" in notes[0]


def test_a_checkpoint_before_damaged_ones_takes_their_place(folder: RunFolder) -> None:
    for step in (20, 30):
        folder.save_checkpoint(step, b"%d" % step, keep_last=2)
        folder.store.write(f"checkpoints/step-000000{step}/state.safetensors", b"")
    folder.save_checkpoint(10, b"10", keep_last=2)
    assert folder.latest_checkpoint(no_damage) == (
        f"{folder.uri}/checkpoints/step-00000010",
        b"10",
    )


def test_training_starts_anew_when_every_checkpoint_is_damaged(folder: RunFolder) -> None:
    folder.save_checkpoint(1, b"first", keep_last=2)
    folder.save_checkpoint(2, b"second", keep_last=2)
    for step in (1, 2):
        folder.store.write(f"checkpoints/step-0000000{step}/state.safetensors", b"")
    notes: list[str] = []
    assert folder.latest_checkpoint(notes.append) is None
    assert len(notes) == 2


def test_result_tracking_model_and_tokenizer_come_back_as_written(folder: RunFolder) -> None:
    tokenizer = Tokenizer.learn(
        ["a red house"], vocab_size=64, num_corner_tokens=2, context_length=16
    )
    folder.write_tokenizer(tokenizer)
    folder.write_model({"config.json": b"{}", "vocab.txt": b"a"})
    folder.write_tracked({"run_id": "0"})
    folder.write_result({"steps": 3})
    again = RunFolder(open_store(folder.uri))
    read = again.read_tokenizer()
    assert read is not None
    assert read.digest == tokenizer.digest
    assert again.read_model() == {"config.json": b"{}", "vocab.txt": b"a"}
    assert again.read_tracked() == {"run_id": "0"}
    assert again.read_result() == {"steps": 3}


def test_half_a_tokenizer_is_none(folder: RunFolder) -> None:
    folder.store.write("tokenizer/vocab.txt", b"[PAD]\n")
    assert folder.read_tokenizer() is None


def step(number: int) -> StepTrace:
    return StepTrace(step=number, epoch=0, samples=(SampleTrace(f"é{number}", "short", "00"),))


def test_a_trace_is_written_in_parts_and_joined_in_the_end(store: Store) -> None:
    folder = RunFolder(store)
    with pytest.raises(DataError, match=r"has no trace: train with train\.trace=true"):
        list(folder.read_trace())
    folder.write_trace([step(1), step(2)])
    folder.write_trace([step(3), step(4)])
    assert list(folder.read_trace()) == [step(number) for number in (1, 2, 3, 4)]
    folder.drop_trace(behind=2)  # training is back at step 2
    assert list(folder.read_trace()) == [step(1), step(2)]
    folder.write_trace([step(3)])
    folder.join_trace()
    assert list(folder.read_trace()) == [step(1), step(2), step(3)]
    assert store.list() == ["trace.jsonl"]
    folder.join_trace()
    assert len(store.read("trace.jsonl").splitlines()) == 3
