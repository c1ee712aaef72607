from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lotlip.data.pipeline import SampleTrace
from lotlip.data.store import FolderStore, Store
from lotlip.errors import CheckpointError, ConfigError, DataError
from lotlip.tokenizer import Tokenizer
from lotlip.train.trace import StepTrace
from lotlip_platform.run_folder import BAD, TRACE, RunFolder
from lotlip_platform.storage import ensure_bucket, open_store


@dataclass(frozen=True, kw_only=True)
class Group:
    width: int = 1
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True, kw_only=True)
class Loop:
    compile: bool = False
    lr: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Stands for any config: the folder knows but the names of groups and a few keys."""

    model: Group = field(default_factory=Group)
    cluster: Group = field(default_factory=Group)
    tracking: Group = field(default_factory=Group)
    checkpoint: Group = field(default_factory=Group)
    train: Loop = field(default_factory=Loop)


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


def test_a_new_folder_holds_nothing(folder: RunFolder) -> None:
    folder.check_claim(Config(), "digest")
    assert folder.read_result() is None
    assert folder.read_tracked() == {}
    assert folder.read_tokenizer() is None
    assert folder.read_model() == {}
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


def test_a_trace_is_written_in_parts_and_joined_in_the_end(folder: RunFolder) -> None:
    with pytest.raises(DataError, match=r"has no trace: train with train\.trace=true"):
        list(folder.read_trace())
    folder.write_part(TRACE, 2, [step(1).to_line(), step(2).to_line()])
    folder.write_part(TRACE, 4, [step(3).to_line(), step(4).to_line()])
    assert list(folder.read_trace()) == [step(number) for number in (1, 2, 3, 4)]
    folder.drop_parts(TRACE, behind=2)  # training is back at step 2
    assert list(folder.read_trace()) == [step(1), step(2)]
    folder.write_part(TRACE, 3, [step(3).to_line()])
    folder.join_parts(TRACE)
    assert list(folder.read_trace()) == [step(1), step(2), step(3)]
    folder.drop_parts(TRACE, behind=0)
    assert folder.store.list() == ["trace.jsonl"]
    folder.join_parts(TRACE)
    assert len(folder.store.read("trace.jsonl").splitlines()) == 3


def test_bad_samples_are_those_of_the_parts_until_they_are_joined(folder: RunFolder) -> None:
    assert folder.read_bad_samples() == []
    folder.write_bad_samples([{"index": 1}, {"index": 7}])  # by a run that ended early
    assert folder.read_bad_samples() == [{"index": 1}, {"index": 7}]
    folder.write_part(BAD, 5, ['{"index": 1}'])
    folder.write_part(BAD, 10, [])
    assert folder.store.list() == ["bad_samples.jsonl", "bad_samples/step-00000005.jsonl"]
    assert folder.read_bad_samples() == [{"index": 1}]
    folder.join_parts(BAD)
    folder.drop_parts(BAD, behind=0)
    assert folder.store.list() == ["bad_samples.jsonl"]
    assert folder.read_bad_samples() == [{"index": 1}]


def test_parts_that_are_left_behind_a_result_are_not_taken_for_the_whole(
    folder: RunFolder,
) -> None:
    for at in (1, 2):
        folder.write_part(TRACE, at, [step(at).to_line()])
    folder.join_parts(TRACE)
    folder.store.delete("trace/step-00000001.jsonl")  # killed while it removed them
    assert list(folder.read_trace()) == [step(2)]
    folder.write_result({"steps": 2})
    assert list(folder.read_trace()) == [step(1), step(2)]


def test_how_it_is_computed_may_change_and_may_be_new(folder: RunFolder) -> None:
    folder.claim(Config(), "digest")
    folder.check_claim(Config(train=Loop(compile=True)), "digest")
    kept = json.loads(folder.store.read("config.json"))
    del kept["train"]["compile"]  # as one that was begun before there were such keys
    del kept["train"]["lr"]
    folder.store.write("config.json", json.dumps(kept).encode())
    folder.check_claim(Config(), "digest")
    with pytest.raises(ConfigError, match=r"another train\.lr=1\.0"):
        folder.check_claim(Config(train=Loop(lr=2.0)), "digest")
