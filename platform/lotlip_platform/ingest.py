"""`lotlip data ingest`: published captions and their images, to shards and a manifest.

A Ray task reads the caption files as a stream, and hands on the rows of a shard at a time; others
fetch their images and write the shards. Nobody holds more than a few shards' rows. Images that lie
in tars are joined first, see `ingest_tars`. What is done is kept in TARGET.ingest, and is not done
again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from lotlip.configuration import to_dict
from lotlip.data import manifest as manifests
from lotlip.data.manifest import write_manifest
from lotlip.data.shards import shard_name
from lotlip.data.store import FolderStore, Store
from lotlip.errors import ClusterError, ConfigError, DataError, LotlipError
from lotlip.ingest.reading import find_files, read_rows
from lotlip.ingest.rows import BadRow, CaptionRow
from lotlip_platform.cluster import connected, store_environment
from lotlip_platform.config import flat
from lotlip_platform.ingest_config import URLS, IngestConfig
from lotlip_platform.ingest_shard import fetched, write_rows
from lotlip_platform.shard_ledger import Entry, ShardLedger, counted, manifest_of
from lotlip_platform.storage import open_store

WORK = ".ingest"
"""What the folder beside the target, in which the work is kept, ends with."""
_CONFIG, _REPORT = "config.json", "report.json"
_HOSTS = 20
_AHEAD = 2
"""Shards' rows that are read before somebody takes them."""
_MAY_CHANGE = ("download", "source", "images")

Told = Callable[[Mapping[str, Any]], None]
"""Gets `rows`, `written` and `rejected` so far, and `bytes` and `total` of the caption files."""


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """A data set made of captions and images of others."""

    uri: str
    digest: str
    num_shards: int
    num_rows: int
    """All that the caption files hold: those written and those rejected."""
    num_written: int
    num_rejected: int
    reasons: Mapping[str, int]
    """How many were rejected for what."""
    rejected: str
    """The folder that lists them, each with its reason."""
    hosts: Mapping[str, int]
    """The hosts with the most images that did not come."""


def ingest(config: IngestConfig, told: Told) -> Ingested:
    """Make a data set of published captions, or go on with it. Raises: LotlipError."""
    source, files = _caption_files(config)
    target = open_store(config.target)
    work = open_store(f"{config.target.rstrip('/')}{WORK}")
    tars = _tars(config)
    _claim(config, target, work)
    if work.exists(_REPORT):
        return _read_report(work)
    with connected():
        entries = dict(ShardLedger(work).entries())
        if not tars:
            _write_shards(config, work, source, files, entries, told)
            num_rows = sum(entry.counts["rows"] for entry in entries.values())
        else:
            from lotlip_platform.ingest_tars import write_joined  # Ray Data takes a while

            num_rows = write_joined(
                config,
                work,
                source,
                files,
                tars,
                entries,
                lambda: _tell(told, entries),
            )
    return _finish(config, target, work, entries, num_rows)


def _caption_files(config: IngestConfig) -> tuple[Store, list[str]]:
    """Raises: DataError."""
    given = PurePosixPath(config.source)
    if given.name.removesuffix(".gz").endswith((".csv", ".tsv", ".json", ".jsonl", ".parquet")) or (
        given.suffix == ".tar"
    ):
        folder = config.source.rpartition("/")[0] or ("/" if config.source[0] == "/" else ".")
        store = open_store(folder)
        return store, find_files(store, given.name, config.format)
    store = open_store(config.source)
    return store, find_files(store, "", config.format)


def _tars(config: IngestConfig) -> list[str]:
    """The tars in which images lie, if they do. Raises: DataError if there are no images."""
    if config.images == URLS:
        return []
    store = open_store(config.images_folder)
    if isinstance(store, FolderStore) and not store.root.is_dir():
        raise DataError(f"images={config.images}: there is no such folder; or give --images url")
    if not config.has_tars:
        return []
    pattern = config.images.rpartition("/")[2]
    found = [name for name in store.list() if fnmatch(name, pattern)]
    if not found:
        raise DataError(f"images={config.images}: there is no such tar")
    return found


def _claim(config: IngestConfig, target: Store, work: Store) -> None:
    """Raises: ConfigError, DataError if something else is there."""
    now = to_dict(config)
    if work.exists(_CONFIG):
        before = json.loads(work.read(_CONFIG))
        for key, value in flat(now).items():
            if not key.startswith(_MAY_CHANGE) and flat(before).get(key) != value:
                raise ConfigError(
                    f"{work.uri} holds an ingest with another {key}={flat(before).get(key)!r}: "
                    "give another place, or remove that one and what it wrote"
                )
        return
    if target.exists(manifests.NAME):
        raise DataError(
            f"{target.uri} holds another data set: give another place, or remove that one first"
        )
    work.write(_CONFIG, json.dumps(now, indent=1).encode())


def _write_shards(
    config: IngestConfig,
    work: Store,
    source: Store,
    files: list[str],
    entries: dict[str, Entry],
    told: Told,
) -> None:
    """Those that aren't there yet; adds to `entries`. Raises: LotlipError, ClusterError."""
    num_workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    environment, done = store_environment(), frozenset(entries)
    # It mostly waits for those that write.
    read: Any = ray.remote(num_cpus=0, num_returns="streaming")(_read)
    write = ray.remote(max_retries=3)(_write)
    parts = iter(
        read.options(_generator_backpressure_num_objects=_AHEAD * num_workers).remote(
            config, source, files, done, environment
        )
    )
    pending: set[Any] = set()
    is_read = False
    with _ray_errors():
        try:
            while pending or not is_read:
                while not is_read and len(pending) < num_workers + _AHEAD:
                    part = next(parts, None)
                    is_read = part is None
                    if part is not None:
                        args = (config, work.uri, part, num_workers, environment)
                        pending.add(write.remote(*args))
                ready, left = ray.wait(list(pending), num_returns=1) if pending else ([], [])
                pending = set(left)
                for entry in ray.get(ready):
                    if entry is not None:
                        entries[entry.shard.name] = entry
                        _tell(told, entries)
        finally:
            for reference in pending:
                ray.cancel(reference, force=False)


def _read(
    config: IngestConfig,
    source: Store,
    files: list[str],
    done: frozenset[str],
    environment: Mapping[str, str],
) -> Iterator[tuple[str, list[CaptionRow], list[BadRow]] | None]:
    """The rows of each shard that isn't done, with its name."""
    os.environ.update(environment)
    rows: list[CaptionRow] = []
    bad: list[BadRow] = []
    number = 0
    for row in read_rows(source, files, config.format, config.column_map):
        (bad if isinstance(row, BadRow) else rows).append(row)  # type: ignore[arg-type]
        if len(rows) + len(bad) == config.shard_size:
            if shard_name(number) not in done:
                yield shard_name(number), rows, bad
            rows, bad, number = [], [], number + 1
    if (rows or bad) and shard_name(number) not in done:
        yield shard_name(number), rows, bad


def _write(
    config: IngestConfig,
    work: str,
    part: tuple[str, list[CaptionRow], list[BadRow]],
    num_workers: int,
    environment: Mapping[str, str],
) -> Entry:
    os.environ.update(environment)
    name, rows, bad = part
    return write_rows(config, work, name, rows, bad, fetched(config, rows, num_workers))


@contextmanager
def _ray_errors() -> Iterator[None]:
    """Raises: LotlipError as a task raised it, ClusterError for what Ray says itself."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, LotlipError):
            raise error.cause from None
        reason = str(error).strip().splitlines()[-1][:200]
        raise ClusterError(f"a task failed: {reason}; run the command again to go on") from error
    except RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(f"Ray lost a task: {reason}; run the command again to go on") from error


def _tell(told: Told, entries: Mapping[str, Entry]) -> None:
    counts, _ = counted(entries.values())
    told(counts)


def _finish(
    config: IngestConfig, target: Store, work: Store, entries: Mapping[str, Entry], num_rows: int
) -> Ingested:
    """Write the manifest, and the report. Raises: DataError unless rows = written + rejected."""
    in_order = [entries[name] for name in sorted(entries)]
    counts, reasons = counted(in_order)
    if num_rows != counts["written"] + counts["rejected"]:
        raise DataError(
            f"{work.uri}: of {num_rows} rows {counts['written']} were written and "
            f"{counts['rejected']} rejected; something was lost, please report this"
        )
    if not counts["written"]:
        common = ", ".join(f"{kind} {number:,}" for kind, number in sorted(reasons.items()))
        raise DataError(
            f"none of {num_rows:,} rows could be written ({common or 'there are none'}); "
            f"{work.uri}/rejected tells of each"
        )
    made_by = {"command": "data ingest", **to_dict(config), "rows": num_rows}
    manifest = manifest_of(target, in_order, {**made_by, "rejected": dict(reasons)})
    write_manifest(target, manifest)
    hosts: Counter[str] = Counter()
    for record in ShardLedger(work).rejected():
        hosts.update([record["host"]] if "host" in record else [])
    result = Ingested(
        uri=target.uri,
        digest=manifest.digest,
        num_shards=len(manifest.shards),
        num_rows=num_rows,
        num_written=counts["written"],
        num_rejected=counts["rejected"],
        reasons=dict(reasons),
        rejected=f"{work.uri}/rejected",
        hosts=dict(hosts.most_common(_HOSTS)),
    )
    work.write(_REPORT, json.dumps(asdict(result), indent=1).encode())
    return result


def _read_report(work: Store) -> Ingested:
    try:
        return Ingested(**json.loads(work.read(_REPORT)))
    except (ValueError, TypeError) as error:
        raise DataError(f"{work.uri}/{_REPORT} is damaged: {error}; remove it") from error
