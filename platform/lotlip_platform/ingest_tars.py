"""Captions joined with images that lie in tars, by key, on Ray Data.

The tars are read twice: once for the keys of their images and, when each row knows its tar, once to
write the shards. An image's key is its file's name without folders and what follows the first dot;
of rows that name addresses it is the address, which the JSON beside an image tells, as in
img2dataset's tars.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.aggregate import Count, Min
from webdataset.tariterators import group_by_keys

from lotlip.data.sample import IMAGE_SUFFIXES
from lotlip.data.store import Store
from lotlip.data.tar import tar_files
from lotlip.errors import DataError
from lotlip.ingest.reading import read_rows
from lotlip.ingest.rows import BadRow, CaptionRow
from lotlip_platform.cluster import store_environment
from lotlip_platform.downloads import Fetched, is_url
from lotlip_platform.ingest_config import IngestConfig
from lotlip_platform.ingest_shard import Found, write_rows
from lotlip_platform.ray_data import Unseen, quiet_ray_data, result_of, results
from lotlip_platform.shard_ledger import Entry, read_entry, to_json
from lotlip_platform.storage import open_store

_BATCH_ROWS = 1000
_PARTITION_BYTES = 128 << 20
_MOST_PARTITIONS = 2000
_SHIFT = 32
"""A place is the number of its tar, and that of the image in the tar in so many bits."""
_WITHOUT = 100_000
"""Rows without an image that are recorded together."""
_COUNT = "rows.json"
_IMAGES = (*IMAGE_SUFFIXES, "gif", "bmp", "tif", "tiff")


@dataclass(frozen=True, kw_only=True)
class _About:
    """What the steps need to know."""

    config: IngestConfig
    work: str
    source: Store
    files: Sequence[str]
    tars: Sequence[str]
    environment: Unseen
    done: frozenset[str]
    """Shards that are committed."""


def write_joined(
    config: IngestConfig,
    work: Store,
    source: Store,
    files: Sequence[str],
    tars: Sequence[str],
    num_bytes: int,
    entries: dict[str, Entry],
    on_entry: Callable[[], None],
) -> int:
    """Write the shards that aren't there yet; adds to `entries`. The number of rows.

    `num_bytes` are those of the caption files. Raises: LotlipError.
    """
    about = _About(
        config=config,
        work=work.uri,
        source=source,
        files=files,
        tars=tars,
        environment=Unseen(store_environment()),
        done=frozenset(entries),
    )
    partitions = min(_MOST_PARTITIONS, 2 + num_bytes // _PARTITION_BYTES)
    quiet_ray_data(partitions)
    minimum: Any = Min  # its annotation asks for a zero of places
    captions = ray.data.from_items([{"all": 0}]).map_batches(
        partial(_captions, about=about), batch_format="pyarrow"
    )
    images = (
        ray.data.from_items([{"tar": n} for n in range(len(tars))], override_num_blocks=len(tars))
        .map_batches(partial(_images, about=about), batch_size=1, batch_format="pyarrow")
        .groupby("key")
        .aggregate(minimum("place", alias_name="place"), Count(alias_name="num"))
    )
    written = (
        captions.join(images, "left_outer", num_partitions=partitions, on=("key",))
        .map_batches(_with_tar, batch_format="pyarrow")
        .groupby("tar")
        .map_groups(partial(_write_group, about=about), batch_format="pyarrow")
    )
    for text in results(written):
        for one in json.loads(text):
            entry = read_entry(one)
            entries[entry.shard.name] = entry
        on_entry()
    return json.loads(work.read(_COUNT))["rows"]


def _captions(batch: pa.Table, about: _About) -> Iterator[pa.Table]:
    """All rows, with the keys of their images; bad ones have none."""
    os.environ.update(about.environment.values)
    config, number = about.config, 0
    rows: list[CaptionRow | BadRow] = []
    for row in read_rows(about.source, about.files, config.format, config.column_map):
        rows.append(row)
        number += 1
        if len(rows) == _BATCH_ROWS:
            yield _table(rows)
            rows = []
    yield _table(rows)
    count = json.dumps({"rows": number})
    open_store(about.work).write(_COUNT, count.encode())


def _table(rows: Sequence[CaptionRow | BadRow]) -> pa.Table:
    return pa.table(
        {
            "key": pa.array([_sound(_key(row)) for row in rows], pa.string()),
            "number": pa.array([row.number for row in rows], pa.int64()),
            "row": pa.array([pickle.dumps(row) for row in rows], pa.binary()),
        }
    )


def _key(row: CaptionRow | BadRow) -> str:
    """What its image is found by; for a bad row what no image is."""
    if isinstance(row, BadRow):
        return f"/{row.number}"
    return row.image if is_url(row.image) else PurePosixPath(row.image).name.partition(".")[0]


def _sound(key: str) -> str:
    """What is no Unicode, as in names of other encodings, written out."""
    return key.encode(errors="backslashreplace").decode()


def _images(batch: pa.Table, about: _About) -> Iterator[pa.Table]:
    """The keys of the images in a tar, and their places."""
    os.environ.update(about.environment.values)
    (tar,) = batch["tar"].to_pylist()
    keys: list[str] = []
    places: list[int] = []
    for index, members in enumerate(_members(about, tar)):
        place = (tar << _SHIFT) + index
        own = {PurePosixPath(members["__key__"]).name, _url_in(members)}
        for key in own - {""}:
            keys.append(key)
            places.append(place)
    keys = [_sound(key) for key in keys]
    yield pa.table({"key": pa.array(keys, pa.string()), "place": pa.array(places, pa.int64())})


def _members(about: _About, tar: int) -> Iterator[Mapping[str, Any]]:
    """The samples of a tar that have an image, by what webdataset calls them.

    Raises: DataError if it is damaged.
    """
    store, name = open_store(about.config.images_folder), about.tars[tar]
    try:
        with store.open(name) as file:
            for members in group_by_keys({"__url__": name, **one} for one in tar_files(file)):
                if any(suffix in members for suffix in _IMAGES):
                    yield members
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{store.uri}/{name} is damaged: {reason}; fetch it again") from error


def _url_in(members: Mapping[str, Any]) -> str:
    """The address that the JSON beside an image tells, if there is one."""
    try:
        found = json.loads(members.get("json", b"{}"))
    except ValueError:
        return ""
    url = found.get("url") if isinstance(found, dict) else None
    return url if isinstance(url, str) else ""


def _with_tar(batch: pa.Table) -> pa.Table:
    """Adds the tar whose group a row is of; those without an image are in groups of their own."""
    numbers, places = batch["number"].to_pylist(), batch["place"].to_pylist()
    tars = [
        -1 - number // _WITHOUT if place is None else place >> _SHIFT
        for number, place in zip(numbers, places, strict=True)
    ]
    return batch.append_column("tar", pa.array(tars, pa.int64()))


def _write_group(group: pa.Table, about: _About) -> pa.Table:
    """Writes what belongs to a tar, or the list of rows that belong to none."""
    os.environ.update(about.environment.values)
    return result_of(lambda: json.dumps([to_json(one) for one in _entries(group, about)]))


def _entries(group: pa.Table, about: _About) -> Iterator[Entry]:
    """Of the shards of a group that weren't there yet."""
    group = group.sort_by([("place", "ascending"), ("number", "ascending")])
    tar = group["tar"][0].as_py()
    rows = [pickle.loads(one) for one in group["row"].to_pylist()]  # noqa: S301 - our own
    if tar < 0:
        name = f"without-{-1 - tar:06d}.tar"
        if name not in about.done:
            bad = [row if isinstance(row, BadRow) else _without_image(row, about) for row in rows]
            yield write_rows(about.config, about.work, name, [], bad, [])
        return
    numbers = [place & ((1 << _SHIFT) - 1) for place in group["place"].to_pylist()]
    wanted: dict[int, CaptionRow] = {}
    bad = []
    for row, index, num in zip(rows, numbers, group["num"].to_pylist(), strict=True):
        if num > 1:
            bad.append(_bad(row, f"{num} images have this name or address", "several"))
        elif index in wanted:
            bad.append(_bad(row, f"row {wanted[index].number} has this image, too", "double"))
        else:
            wanted[index] = row
    yield from _pieces(about, tar, wanted, bad)


def _pieces(
    about: _About, tar: int, wanted: Mapping[int, CaptionRow], bad: Sequence[BadRow]
) -> Iterator[Entry]:
    """The tar's images in shards of at most the size that was asked for."""
    size = about.config.shard_size
    indices = sorted(wanted)
    names = [f"shard-{tar:06d}-{n:04d}.tar" for n in range(max(1, -(-len(indices) // size)))]
    if about.done.issuperset(names):
        return
    images = ((i, members) for i, members in enumerate(_members(about, tar)) if i in wanted)
    for piece, name in enumerate(names):
        own = indices[piece * size : (piece + 1) * size]
        found = (_found(wanted[i], members) for i, members in itertools.islice(images, len(own)))
        if name in about.done:
            for _ in found:
                pass
            continue
        rows = [wanted[i] for i in own]
        yield write_rows(about.config, about.work, name, rows, bad if not piece else [], found)


def _found(row: CaptionRow, members: Mapping[str, Any]) -> Found:
    """A row and its image."""
    suffix = next(suffix for suffix in _IMAGES if suffix in members)
    return row, Fetched(content=members[suffix])


def _without_image(row: CaptionRow, about: _About) -> BadRow:
    return _bad(row, f"none of the tars in {about.config.images} has {_key(row)}", "missing")


def _bad(row: CaptionRow, reason: str, kind: str) -> BadRow:
    return BadRow(number=row.number, where="", reason=reason, kind=kind, image=row.image)
