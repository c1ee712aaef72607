from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lotlip.data.manifest import NAME, Manifest, Shard, read_manifest, write_manifest
from lotlip.data.store import FolderStore
from lotlip.errors import DataError

SHARDS = (
    Shard(name="shard-000000.tar", num_samples=3, num_bytes=10240, sha256="a" * 64),
    Shard(name="shard-000001.tar", num_samples=4, num_bytes=20480, sha256="b" * 64, offsets=(0,)),
)
MANIFEST = Manifest(
    shards=SHARDS,
    captions={"short": {"num": 7, "mean_words": 3.5, "max_words": 9}},
    made_by={"command": "lotlip data scenes", "seed": 1},
)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    store = FolderStore(tmp_path)
    write_manifest(store, MANIFEST)
    return store


def test_a_manifest_survives_its_file(store: FolderStore) -> None:
    read = read_manifest(store)
    assert read == MANIFEST
    assert (read.num_samples, read.num_bytes, read.digest) == (7, 30720, MANIFEST.digest)


@pytest.mark.parametrize(
    "change", [{"name": "x"}, {"num_samples": 5}, {"num_bytes": 1}, {"sha256": "c" * 64}]
)
def test_the_digest_names_the_content_of_the_shards(change: dict[str, Any]) -> None:
    assert len(MANIFEST.digest) == 16
    assert replace(MANIFEST, captions={}, made_by={}).digest == MANIFEST.digest
    assert replace(MANIFEST, shards=SHARDS[::-1]).digest != MANIFEST.digest
    changed = (SHARDS[0], replace(SHARDS[1], **change))
    assert replace(MANIFEST, shards=changed).digest != MANIFEST.digest


def test_a_shard_knows_in_which_part_of_it_a_sample_lies() -> None:
    known = Shard(name="a", num_samples=300, num_bytes=9000, sha256="", offsets=(0, 3000, 6000))
    assert known.part(0) == known.part(127) == (range(128), range(3000))
    assert known.part(128) == (range(128, 256), range(3000, 6000))
    assert known.part(299) == (range(256, 300), range(6000, 9000))
    assert replace(known, offsets=()).part(299) == (range(300), range(9000))


def test_a_folder_without_manifest_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path} has no manifest.json: is the address right"):
        read_manifest(FolderStore(tmp_path))


def test_a_data_set_without_samples_is_refused(store: FolderStore) -> None:
    for shards in ((), (replace(SHARDS[0], num_samples=0),)):
        write_manifest(store, replace(MANIFEST, shards=shards))
        with pytest.raises(DataError, match="is empty: its manifest lists no sample"):
            read_manifest(store)


def _shard_set(content: dict[str, Any], name: str, value: Any) -> None:
    content["shards"][1][name] = value


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: _shard_set(c, "num_samples", 5), "says digest .* it was edited"),
        (lambda c: _shard_set(c, "name", "other.tar"), "says digest .* it was edited"),
        (lambda c: c["shards"].pop(), "says digest .* it was edited"),
        (lambda c: c["shards"].reverse(), "says digest .* it was edited"),
        (lambda c: c.update(digest="0" * 16), "says digest 0{16}, .* it was edited"),
        (lambda c: c.update(format="lotlip-shards-v9"), "'lotlip-shards-v9', this version reads"),
        (lambda c: c.pop("digest"), "is damaged"),
        (lambda c: c.pop("shards"), "is damaged"),
        (lambda c: c.pop("format"), "is damaged"),
        (lambda c: c.update(shards=["x"]), "is damaged"),
        (lambda c: _shard_set(c, "colour", "red"), "is damaged"),
        (
            lambda c: _shard_set(c, "offsets", [0, 512]),
            "is damaged: .* needs an offset every 128 samples",
        ),
    ],
)
def test_an_edited_manifest_is_an_error(
    store: FolderStore, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    content = json.loads(store.read(NAME))
    edit(content)
    store.write(NAME, json.dumps(content).encode())
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(store)
    assert str(caught.value).startswith(f"{store.uri}/{NAME} ")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"3"])
def test_a_file_that_is_no_manifest_is_an_error(store: FolderStore, content: bytes) -> None:
    store.write(NAME, content)
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        read_manifest(store)
