"""Which shards of a data set in the making are done, and what became of what is not in them.

WORK/shards/SHARD.json              the entry of a committed shard, written behind the shard itself
WORK/rejected/SHARD.jsonl           what is not in it, each with its reasons

A shard without an entry is no part of the data set, and is written again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from lotlip.data.manifest import Manifest, Shard, to_shard
from lotlip.data.shards import CaptionCount
from lotlip.data.store import Store
from lotlip.errors import CheckpointError, DataError

_ENTRIES, _REJECTED = "shards", "rejected"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A committed shard."""

    shard: Shard
    captions: Mapping[str, Mapping[str, float]]
    """As a manifest has them."""
    counts: Mapping[str, Any]
    """What is to be summed over all shards."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """How often what was found wrong."""
    revision: str = ""
    """Of what made it."""


class ShardLedger:
    """Reads and writes it. Every object is written wholly or not at all."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def entries(self) -> dict[str, Entry]:
        """By the shard's name. Raises: CheckpointError if one is damaged."""
        found = {}
        for name in self.store.list(f"{_ENTRIES}/"):
            try:
                entry = read_entry(self.store.read(name))
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{self.store.uri}/{name} is damaged: {error!r}") from error
            found[entry.shard.name] = entry
        return found

    def entry(self, shard: str) -> Entry | None:
        """Of a shard, if it is committed."""
        name = f"{_ENTRIES}/{stem_of(shard)}.json"
        return read_entry(self.store.read(name)) if self.store.exists(name) else None

    def forget(self, shard: str) -> None:
        """A committed shard that is no longer there."""
        self.store.delete(f"{_ENTRIES}/{stem_of(shard)}.json")

    def commit(self, entry: Entry, rejected: Iterable[Mapping[str, Any]]) -> None:
        """Make a written shard part of the data set."""
        stem = stem_of(entry.shard.name)
        self.write_rejected(stem, rejected)
        self.store.write(f"{_ENTRIES}/{stem}.json", to_json(entry).encode())

    def write_rejected(self, stem: str, records: Iterable[Mapping[str, Any]]) -> None:
        """In place of those of an attempt that was killed; of nothing there is no file."""
        name = f"{_REJECTED}/{stem}.jsonl"
        if lines := "".join(f"{json.dumps(one)}\n" for one in records):
            self.store.write(name, lines.encode())
        else:
            self.store.delete(name)

    def rejected(self) -> Iterator[dict[str, Any]]:
        """All that is not in the data set, shard by shard."""
        for name in self.store.list(f"{_REJECTED}/"):
            with self.store.open(name) as file:
                yield from (json.loads(line) for line in file)


def to_json(entry: Entry) -> str:
    return json.dumps(asdict(entry))


def read_entry(text: str | bytes) -> Entry:
    """The inverse of `to_json`. Raises: ValueError, KeyError, TypeError for what is none."""
    content = json.loads(text)
    return Entry(**{**content, "shard": to_shard(content["shard"])})


def stem_of(shard: str) -> str:
    return PurePosixPath(shard).with_suffix("").as_posix()


def counted(entries: Iterable[Entry]) -> tuple[dict[str, Any], dict[str, int]]:
    """The counts and the reasons of all."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for entry in entries:
        counts.update(entry.counts)
        reasons.update(entry.reasons)
    return counts, reasons


def whole(entries: Mapping[str, Entry], target: Store) -> dict[str, Entry]:
    """Those whose shards are there as they were written."""
    found = target.versions()
    return {
        name: entry
        for name, entry in entries.items()
        if not entry.shard.num_samples
        or (name in found and found[name].num_bytes == entry.shard.num_bytes)
    }


def manifest_of(target: Store, entries: Sequence[Entry], made_by: Mapping[str, Any]) -> Manifest:
    """The manifest of shards that are committed and there; those that came out empty are left out.

    Raises: DataError if one isn't what was written.
    """
    found, count = target.versions(), CaptionCount()
    shards = [entry.shard for entry in entries if entry.shard.num_samples]
    for shard in shards:
        if shard.name not in found or found[shard.name].num_bytes != shard.num_bytes:
            raise DataError(
                f"{target.uri}/{shard.name} is not what was written there: with Ray on several "
                "machines use an s3:// address or a folder that all of them see, and let nobody "
                "else write there"
            )
    for entry in entries:
        count.add_summary(entry.captions)
    return Manifest(shards=tuple(shards), captions=count.summary(), made_by=made_by)
