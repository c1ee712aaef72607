"""Procedural data sets in a store, their shards written in parallel."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal

from lotlip.data import manifest as manifests
from lotlip.data.manifest import Manifest, Shard, read_manifest
from lotlip.data.sample import Sample
from lotlip.data.scenes import make_sample
from lotlip.data.shards import CaptionCount, shard_name, write_dataset, write_shard
from lotlip.data.store import FolderStore, Store
from lotlip.errors import ConfigError, DataError
from lotlip_platform.cluster import connected, store_environment
from lotlip_platform.shard_tasks import check_all_here, in_tasks
from lotlip_platform.storage import open_store

Split = Literal["train", "validation", "test"]
SPLIT_SIZE = 1_000_000_000
FIRST_INDEX: dict[str, int] = {"train": 0, "validation": SPLIT_SIZE, "test": 2 * SPLIT_SIZE}
"""Where a split begins among the samples of `make_sample`: two splits of a seed share none."""
MOST_SHARDS_WITHOUT_RAY = 2

_Written = tuple[Shard, CaptionCount]
_Writing = Generator[tuple[int, _Written], None, None]


def make_scenes(
    destination: str,
    *,
    num_samples: int,
    split: Split = "train",
    seed: int = 0,
    shard_size: int = 1000,
    captioners: bool = False,
    on_progress: Callable[[int, int], None],
) -> Manifest:
    """Write procedural scenes as shards and, last of all, their manifest.

    A data set made with the same arguments is returned as it is; what an interrupted run left is
    written again. The bytes depend on the arguments only. Up to two shards are made in this
    process, more by Ray tasks; a folder as destination must then be one that all machines see.

    Args:
        num_samples: at most SPLIT_SIZE.
        shard_size: samples of every shard but the last.
        captioners: adds long captions by three captioners with habits and errors.
        on_progress: gets the numbers of samples written and asked for.

    Raises: ConfigError; DataError if another data set is there or the store refuses; ClusterError.
    """
    _check_arguments(num_samples, split, seed, shard_size)
    made_by = {
        "command": "data scenes",
        "seed": seed,
        "split": split,
        "num_samples": num_samples,
        "shard_size": shard_size,
        **({"captioners": True} if captioners else {}),
    }
    store = open_store(destination)
    found = _existing(store, made_by)
    if found is not None:
        return found
    first = FIRST_INDEX[split]
    ends = [*range(shard_size, num_samples, shard_size), num_samples]
    ranges = [
        range(first + start, first + end) for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    uri = store.uri if isinstance(store, FolderStore) else destination
    make = _made_here if len(ranges) <= MOST_SHARDS_WITHOUT_RAY else _made_by_ray
    written: dict[int, _Written] = {}
    with closing(make(uri, ranges, seed, captioners)) as writing:
        for place, result in writing:
            written[place] = result
            on_progress(sum(shard.num_samples for shard, _ in written.values()), num_samples)
    in_order = [written[place] for place in range(len(ranges))]
    check_all_here(store, [shard for shard, _ in in_order])
    return write_dataset(store, in_order, made_by)


def _check_arguments(num_samples: int, split: str, seed: int, shard_size: int) -> None:
    if split not in FIRST_INDEX:
        raise ConfigError(f"split={split!r} must be one of {', '.join(FIRST_INDEX)}")
    if not 1 <= num_samples <= SPLIT_SIZE:
        raise ConfigError(f"num_samples={num_samples} must be from 1 to {SPLIT_SIZE}")
    if shard_size < 1:
        raise ConfigError(f"shard_size={shard_size} must be 1 or more")
    if seed < 0:
        raise ConfigError(f"seed={seed} must be 0 or more")


def _existing(store: Store, made_by: Mapping[str, Any]) -> Manifest | None:
    """The data set if it was made so already. Raises: DataError if there is another."""
    if not store.exists(manifests.NAME):
        return None
    found = read_manifest(store)
    if found.made_by != made_by:
        how = ", ".join(f"{name}={value}" for name, value in found.made_by.items()) or "unknown"
        raise DataError(
            f"{store.uri} holds another data set ({how}): choose another destination, or remove "
            "that one first"
        )
    return found


def _made_here(uri: str, ranges: Sequence[range], seed: int, captioners: bool) -> _Writing:
    for place, indices in enumerate(ranges):
        yield place, _write(uri, place, indices, seed, captioners, {})


def _made_by_ray(uri: str, ranges: Sequence[range], seed: int, captioners: bool) -> _Writing:
    """The shards as they get ready. Raises: LotlipError; tasks that are left are cancelled."""
    with connected():
        environment = store_environment()
        calls = [
            (uri, place, indices, seed, captioners, environment)
            for place, indices in enumerate(ranges)
        ]
        yield from in_tasks(_write, calls)


def _write(
    uri: str,
    place: int,
    indices: range,
    seed: int,
    captioners: bool,
    environment: Mapping[str, str],
) -> _Written:
    os.environ.update(environment)
    captions = CaptionCount()

    def samples() -> Iterator[Sample]:
        for index in indices:
            sample = make_sample(seed, index, captioners=captioners)
            captions.add(sample)
            yield sample

    return write_shard(open_store(uri), shard_name(place), samples()), captions
