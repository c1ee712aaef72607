"""Which versions of its shards a run trains on: those that it began with, to its end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from lotlip.data.manifest import Manifest, Shard
from lotlip.data.store import Store, wrong_size
from lotlip.errors import DataError

_CHUNK_BYTES = 1 << 20


class TrainingData(NamedTuple):
    """What the workers of a run read."""

    uri: str
    """Of a data set, or of its features."""
    tags: dict[str, str]
    """The version of each shard, by name."""


def check_shards(store: Store, manifest: Manifest, known: Mapping[str, str]) -> dict[str, str]:
    """The versions of the shards, by name.

    A shard that isn't of the version that is known of it is read: the same content may have been
    copied there anew. Raises: DataError if a shard is missing or not what the manifest says.
    """
    found, tags = store.versions(), {}
    for shard in manifest.shards:
        where = f"{store.uri}/{shard.name}"
        if shard.name not in found:
            raise DataError(f"{where} does not exist, though its manifest says so")
        version = found[shard.name]
        if version.num_bytes != shard.num_bytes:
            raise DataError(wrong_size(where, version.num_bytes, shard.num_bytes))
        if known.get(shard.name, version.tag) != version.tag:
            _check_content(store, shard, version.tag)
        tags[shard.name] = version.tag
    return tags


def _check_content(store: Store, shard: Shard, tag: str) -> None:
    found = hashlib.sha256()
    with store.open(shard.name, num_bytes=shard.num_bytes, tag=tag) as file:
        while chunk := file.read(_CHUNK_BYTES):
            found.update(chunk)
    if found.hexdigest() != shard.sha256:
        raise DataError(
            f"{store.uri}/{shard.name} was changed since this run began, and is not what its "
            "manifest says: bring the old one back, or give the new data a manifest and the run "
            "another name=..."
        )
