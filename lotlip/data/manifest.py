"""The manifest of a data set: what its shards hold, to the byte.

`manifest.json` lies beside the shards. Everything that trains reads it first: the order of the
samples is arithmetic over its counts, and its digest names the data in every run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lotlip.data.store import Store
from lotlip.errors import DataError

NAME = "manifest.json"
_FORMAT = "lotlip-shards-v1"
SEEK_EVERY = 128
"""Samples between two offsets that a manifest knows: what reading from the middle may read and
not need."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str
    offsets: tuple[int, ...] = ()
    """Where samples 0, SEEK_EVERY, 2 SEEK_EVERY, ... begin, in bytes. Without them, reading from
    the middle reads from the start."""

    def __post_init__(self) -> None:
        if self.offsets and len(self.offsets) != -(-self.num_samples // SEEK_EVERY):
            raise ValueError(f"{self.name} needs an offset every {SEEK_EVERY} samples, or none")

    def part(self, sample: int) -> tuple[range, range]:
        """Of the part between two known offsets that holds a sample: its samples, its bytes."""
        if not self.offsets:
            return range(self.num_samples), range(self.num_bytes)
        place = sample // SEEK_EVERY
        end = (*self.offsets, self.num_bytes)[place + 1]
        first = place * SEEK_EVERY
        return (
            range(first, min(first + SEEK_EVERY, self.num_samples)),
            range(self.offsets[place], end),
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The shards in their order, and how long their captions are."""

    shards: tuple[Shard, ...]
    captions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """For `short` and each `long.CAPTIONER`: `num`, `mean_words`, `max_words`."""
    made_by: Mapping[str, Any] = field(default_factory=dict)
    """How the data set came about: command, seed, sources."""

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def digest(self) -> str:
        """Names the shards' content: 16 hexadecimal digits."""
        lines = [f"{s.name} {s.num_samples} {s.num_bytes} {s.sha256}" for s in self.shards]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Write the manifest; due last, since it is what makes a data set complete."""
    content = {
        "format": _FORMAT,
        "digest": manifest.digest,
        "num_samples": manifest.num_samples,
        "num_bytes": manifest.num_bytes,
        "captions": manifest.captions,
        "made_by": manifest.made_by,
    }
    head = json.dumps(content, indent=1).removesuffix("\n}")
    shards = ",\n".join(f"  {json.dumps(asdict(shard))}" for shard in manifest.shards)
    store.write(NAME, f'{head},\n "shards": [\n{shards}\n ]\n}}\n'.encode())


def to_shard(entry: Mapping[str, Any]) -> Shard:
    """The shard that JSON tells of. Raises: ValueError, TypeError if it is none."""
    return Shard(**{**entry, "offsets": tuple(entry.get("offsets", ()))})


FEATURES_OF = "features_of"
"""In `made_by` of a set of image features (see `features`): the data set they are of."""


def read_manifest(store: Store, *, of_features: bool = False) -> Manifest:
    """The manifest in a store.

    `of_features` takes sets of image features, too. Raises: DataError if there is no manifest, it
    contradicts itself, or it is that of features where images are wanted.
    """
    if not store.exists(NAME):
        raise DataError(
            f"{store.uri} has no {NAME}: is the address right? "
            "Data sets are made by lotlip data scenes, or written as docs/data.md tells"
        )
    try:
        content = json.loads(store.read(NAME))
        if content["format"] != _FORMAT:
            raise DataError(
                f"{store.uri}/{NAME} has format {content['format']!r}, this version reads "
                f"{_FORMAT!r}: write the data set again or take the matching version"
            )
        manifest = Manifest(
            shards=tuple(to_shard(entry) for entry in content["shards"]),
            captions=content["captions"],
            made_by=content["made_by"],
        )
        found = content["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{store.uri}/{NAME} is damaged: {error!r}") from error
    if found != manifest.digest:
        raise DataError(
            f"{store.uri}/{NAME} says digest {found}, its shards give {manifest.digest}: "
            "it was edited; write the data set again"
        )
    if FEATURES_OF in manifest.made_by and not of_features:
        raise DataError(
            f"{store.uri} holds image features, not images: give the data set they are of, "
            f"{manifest.made_by[FEATURES_OF]}"
        )
    if manifest.num_samples == 0:
        raise DataError(f"{store.uri} is empty: its manifest lists no sample")
    return manifest
