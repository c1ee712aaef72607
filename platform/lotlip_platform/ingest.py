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
from lotlip.data.manifest import read_manifest, write_manifest
from lotlip.data.shards import shard_name
from lotlip.data.store import FolderStore, Store
from lotlip.errors import ClusterError, ConfigError, DataError, LotlipError
from lotlip.ingest.reading import find_files, read_rows
from lotlip.ingest.rows import BadRow, CaptionRow
from lotlip_platform.cluster import connected, store_environment
from lotlip_platform.config import flat
from lotlip_platform.downloads import num_downloaders
from lotlip_platform.ingest_config import URLS, IngestConfig
from lotlip_platform.ingest_shard import fetched, write_rows
from lotlip_platform.ownership import owned
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.shard_ledger import Entry, ShardLedger, counted, manifest_of, whole
from lotlip_platform.storage import open_store

WORK = ".ingest"
"""What the folder beside the target, in which the work is kept, ends with."""
_CONFIG, _REPORT = "config.json", "report.json"
_HOSTS = 20
_AHEAD = 2
"""Shards' rows that are read before somebody takes them."""
_MAY_CHANGE = ("download", "source", "images")
"""Where things lie may change; what there is may not, see `_inputs`."""
_FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".tar")

Told = Callable[[Mapping[str, Any]], None]
"""Gets `rows`, `written` and `rejected` so far."""


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
    target, work = open_store(config.target), open_store(_work(config.target))
    tars = _tars(config)
    inputs = _inputs(config, source, files, tars)
    _check_claim(config, target, work, inputs)
    if work.exists(_REPORT):
        return _read_report(work, target)
    with owned(RunFolder(work)), connected():
        _claim(config, target, work, inputs)
        entries = whole(ShardLedger(work).entries(), target)
        if tars:
            from lotlip_platform.ingest_tars import write_joined  # Ray Data takes a while

            num_rows = write_joined(
                config,
                work,
                source,
                files,
                tars,
                sum(inputs["files"].values()),
                entries,
                lambda: _tell(told, entries),
            )
        else:
            num_rows = _write_shards(config, work, source, files, entries, told)
        return _finish(config, target, work, entries, num_rows)


def _work(target: str) -> str:
    """Where the work on a target is kept. Raises: ConfigError for a bucket without a prefix."""
    place = target.rstrip("/")
    if place.startswith("s3://") and "/" not in place.removeprefix("s3://"):
        raise ConfigError(f"target={target} must have a prefix: s3://BUCKET/PREFIX")
    return f"{place}{WORK}"


def _caption_files(config: IngestConfig) -> tuple[Store, list[str]]:
    """Raises: DataError."""
    folder, _, name = config.source.rpartition("/")
    if PurePosixPath(name.removesuffix(".gz")).suffix in _FILES:
        store = open_store(folder or ("/" if config.source.startswith("/") else "."))
        return store, find_files(store, name, config.format)
    store = open_store(config.source)
    if isinstance(store, FolderStore) and not store.root.is_dir():
        what = "is no caption file" if store.root.exists() else "does not exist"
        raise DataError(f"source={config.source} {what}; caption files end in {', '.join(_FILES)}")
    return store, find_files(store, "", config.format)


def _inputs(
    config: IngestConfig, source: Store, files: list[str], tars: list[str]
) -> dict[str, Any]:
    """What the rows' numbers, and so the shards, depend on."""
    images = open_store(config.images_folder).versions() if tars else {}
    # A single file may lie among millions of images.
    found = source.versions() if len(files) > 1 else {files[0]: source.version(files[0])}
    return {
        "files": {name: found[name].num_bytes for name in files},
        "tars": {name: images[name].num_bytes for name in tars},
    }


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


def _check_claim(
    config: IngestConfig, target: Store, work: Store, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """What is to be noted of this ingest; empty if that is noted.

    Raises: ConfigError, DataError if something else is there, or the inputs have changed.
    """
    now = {**to_dict(config), "inputs": inputs}
    has_begun = bool(work.list("shards/")) or work.exists(_REPORT)
    if work.exists(_CONFIG) and has_begun:
        before = flat(json.loads(work.read(_CONFIG)))
        after = flat(json.loads(json.dumps(now)))
        for key in {**before, **after}:
            if not key.startswith(_MAY_CHANGE) and before.get(key) != after.get(key):
                raise ConfigError(
                    f"{work.uri} holds an ingest with another {key}={before.get(key)!r}: give "
                    "another place, or remove that one and what it wrote"
                )
        return {}
    if target.exists(manifests.NAME):
        raise DataError(
            f"{target.uri} holds another data set: give another place, or remove that one first"
        )
    return now


def _claim(config: IngestConfig, target: Store, work: Store, inputs: Mapping[str, Any]) -> None:
    """Notes it, once nobody else works here. Raises: as `_check_claim`."""
    if now := _check_claim(config, target, work, inputs):
        work.write(_CONFIG, json.dumps(now, indent=1).encode())


def _write_shards(
    config: IngestConfig,
    work: Store,
    source: Store,
    files: list[str],
    entries: dict[str, Entry],
    told: Told,
) -> int:
    """Those that aren't there yet; adds to `entries`. The number of rows. Raises: LotlipError."""
    num_workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    ahead = _AHEAD
    if config.images == URLS:
        num_workers, ahead = num_downloaders(config.download, num_workers), 0
    environment, done = store_environment(), frozenset(entries)
    # It mostly waits for those that write.
    read: Any = ray.remote(num_cpus=0, num_returns="streaming")(_read)
    write = ray.remote(max_retries=3)(_write)
    parts = iter(
        read.options(_generator_backpressure_num_objects=_AHEAD + num_workers).remote(
            config, source, files, done, environment
        )
    )
    pending: set[Any] = set()
    get: Any = ray.get
    num_rows = -1
    with _ray_errors():
        try:
            while pending or num_rows < 0:
                while num_rows < 0 and len(pending) < num_workers + ahead:
                    part, is_last = next(parts), next(parts, None)
                    # Rows stay where they are; only their number is fetched, or an error.
                    if is_last is None or get(is_last):
                        num_rows = get(part)
                        break
                    args = (config, work.uri, part, num_workers, environment)
                    pending.add(write.remote(*args))
                ready, left = ray.wait(list(pending), num_returns=1) if pending else ([], [])
                pending = set(left)
                for entry in ray.get(ready):
                    entries[entry.shard.name] = entry
                    _tell(told, entries)
        finally:
            for reference in pending:
                ray.cancel(reference, force=False)
    return num_rows


def _read(
    config: IngestConfig,
    source: Store,
    files: list[str],
    done: frozenset[str],
    environment: Mapping[str, str],
) -> Iterator[Any]:
    """The rows of each shard that isn't done, with its name, and at last the number of all rows;
    each is followed by whether it was the last."""
    os.environ.update(environment)
    rows: list[CaptionRow] = []
    bad: list[BadRow] = []
    number = num_rows = 0
    for row in read_rows(source, files, config.format, config.column_map):
        (bad if isinstance(row, BadRow) else rows).append(row)  # type: ignore[arg-type]
        num_rows += 1
        if len(rows) + len(bad) == config.shard_size:
            if shard_name(number) not in done:
                yield shard_name(number), rows, bad
                yield False
            rows, bad, number = [], [], number + 1
    if (rows or bad) and shard_name(number) not in done:
        yield shard_name(number), rows, bad
        yield False
    yield num_rows
    yield True


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


def _read_report(work: Store, target: Store) -> Ingested:
    """Raises: DataError if it is damaged, or the data set isn't there any longer."""
    try:
        report = Ingested(**json.loads(work.read(_REPORT)))
    except (ValueError, TypeError) as error:
        raise DataError(f"{work.uri}/{_REPORT} is damaged: {error}; remove it") from error
    if not target.exists(manifests.NAME) or read_manifest(target).digest != report.digest:
        raise DataError(
            f"{target.uri} is no longer what {work.uri}/{_REPORT} says: remove {work.uri} to make "
            "it again"
        )
    return report
