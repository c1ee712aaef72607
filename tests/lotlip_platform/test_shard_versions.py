"""Shards that change under a run, in a folder and in S3."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lotlip.data.manifest import Manifest, read_manifest
from lotlip.data.shards import read_shard
from lotlip.data.store import FolderStore, Store
from lotlip.errors import DataError
from lotlip_platform.shard_versions import check_shards
from lotlip_platform.storage import ensure_bucket, open_store

COUNT = itertools.count()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, scenes_folder: Path, tmp_path: Path) -> Store:
    """A data set of two shards that may be changed."""
    if request.param == "folder":
        shutil.copytree(scenes_folder, tmp_path / "data")
        return FolderStore(tmp_path / "data")
    request.getfixturevalue("s3_env")
    uri = f"s3://versions/{next(COUNT)}"
    ensure_bucket(uri)
    store = open_store(uri)
    for path in scenes_folder.iterdir():
        store.write_file(path.name, path)
    return store


@pytest.fixture
def manifest(store: Store) -> Manifest:
    return read_manifest(store)


def changed(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_shards_are_as_they_were(store: Store, manifest: Manifest) -> None:
    tags = check_shards(store, manifest, known={})
    assert tags.keys() == {shard.name for shard in manifest.shards}
    assert check_shards(store, manifest, known=tags) == tags


def test_a_shard_that_is_gone_or_of_another_size_is_named(store: Store, manifest: Manifest) -> None:
    first, second = manifest.shards
    store.write(first.name, store.read(first.name) + b"more")
    with pytest.raises(DataError, match=rf"{first.name} has .* bytes, expected {first.num_bytes}"):
        check_shards(store, manifest, known={})
    store.delete(first.name)
    with pytest.raises(DataError, match=f"{store.uri}/{first.name} does not exist"):
        check_shards(store, replace(manifest, shards=(second, first)), known={})


def test_a_shard_that_is_another_one_of_the_same_size_is_named(
    store: Store, manifest: Manifest
) -> None:
    tags = check_shards(store, manifest, known={})
    shard = manifest.shards[1]
    store.write(shard.name, changed(store.read(shard.name)))
    assert check_shards(store, manifest, known={}) != tags
    with pytest.raises(DataError, match=f"{shard.name} was changed since this run began"):
        check_shards(store, manifest, known=tags)


def test_a_copy_of_the_same_shard_will_do(store: Store, manifest: Manifest) -> None:
    shard = manifest.shards[0]
    known = check_shards(store, manifest, known={}) | {shard.name: "of the disk before"}
    assert check_shards(store, manifest, known=known)[shard.name] != "of the disk before"


def test_a_shard_that_changes_during_the_run_is_not_read(store: Store, manifest: Manifest) -> None:
    tags = check_shards(store, manifest, known={})
    shard = manifest.shards[0]
    assert len(list(read_shard(store, shard, tag=tags[shard.name]))) == shard.num_samples
    store.write(shard.name, changed(store.read(shard.name)))
    with pytest.raises(DataError, match=f"{shard.name}.*changed while it was in use"):
        list(read_shard(store, shard, tag=tags[shard.name]))
