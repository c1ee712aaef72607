"""One shard of an ingest: captions and their images put together, written, committed."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from lotlip.data.sample import Sample
from lotlip.data.shards import CaptionCount, write_shard
from lotlip.data.store import Store
from lotlip.errors import ClusterError, DataError
from lotlip.images import stored
from lotlip.ingest.rows import BadRow, CaptionRow
from lotlip_platform.downloads import Fetched, download, host_of, is_url
from lotlip_platform.ingest_config import URLS, IngestConfig
from lotlip_platform.shard_ledger import Entry, ShardLedger
from lotlip_platform.storage import open_store

_READERS = 16
"""Images of a folder read at once."""
_OUTAGES = ("connection", "timeout", "look-up")
_FEW = 20
"""Images of a shard that may all be out of reach by chance."""
_LONGEST_PATH, _LONGEST_NAME = 1000, 255
"""Bytes that stores and folders take."""

Found = tuple[CaptionRow, Fetched]


def write_rows(
    config: IngestConfig,
    work: str,
    name: str,
    rows: Sequence[CaptionRow],
    bad: Sequence[BadRow],
    found: Iterable[Found],
) -> Entry:
    """Write and commit a shard of `rows`, with what was found of their images, in their order.

    `bad` are rows between them that are no captions. Raises: DataError, ConfigError for the store.
    """
    ledger, target, count = _Ledger(bad), open_store(config.target), CaptionCount()

    def samples() -> Iterator[Sample]:
        for row, fetched in found:
            sample = ledger.sample(config, row, fetched)
            if sample is not None:
                count.add(sample)
                yield sample

    shard = write_shard(target, name, samples())
    if not shard.num_samples:
        target.delete(name)
        unreached = sum(ledger.reasons[kind] for kind in _OUTAGES)
        if unreached == len(rows) > _FEW:
            raise ClusterError(
                f"{name}: none of {unreached} hosts could be reached "
                f"({ledger.records[-1]['reason']}): when the network is well, run the same command "
                "again"
            )
    num_rejected = len(ledger.records)
    entry = Entry(
        shard=shard,
        captions=count.summary(),
        counts={
            "rows": len(rows) + len(bad),
            "written": shard.num_samples,
            "rejected": num_rejected,
        },
        reasons=dict(sorted(ledger.reasons.items())),
    )
    ShardLedger(open_store(work)).commit(entry, ledger.records)
    return entry


def fetched(config: IngestConfig, rows: Sequence[CaptionRow], num_workers: int) -> Iterator[Found]:
    """The images of the rows from where the config says, in the rows' order.

    `num_workers` share the limits of downloads. Raises: DataError if the store can't be read.
    """
    if config.images == URLS:
        urls = [row.image for row in rows]
        images = download(urls, config.download, num_workers=num_workers)
        yield from zip(rows, images, strict=True)
        return
    store = open_store(config.images)
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque[tuple[CaptionRow, Future[Fetched]]] = deque()
        for row in rows:
            if len(waiting) == 2 * _READERS:  # or all of a shard's images would pile up
                first, reading = waiting.popleft()
                yield first, reading.result()
            waiting.append((row, pool.submit(_read, store, row, config.strip)))
        for first, reading in waiting:
            yield first, reading.result()


def _read(store: Store, row: CaptionRow, strip: str) -> Fetched:
    path = path_of(row.image, strip)
    is_name = path and len(path.encode(errors="replace")) <= _LONGEST_PATH and path.isprintable()
    if (
        not is_name
        or ".." in PurePosixPath(path).parts
        or any(len(part.encode(errors="replace")) > _LONGEST_NAME for part in path.split("/"))
    ):
        return Fetched(kind="path", reason=f"{row.image[:200]!r} is no path below {store.uri}")
    try:
        return Fetched(content=store.read(path))
    except DataError as error:
        if not store.exists(path):
            return Fetched(kind="missing", reason=f"{store.uri} has no {path}")
        raise error


def path_of(image: str, strip: str) -> str:
    """Where it lies below the images' folder."""
    return image.removeprefix(strip).lstrip("/")


class _Ledger:
    """What did not become a sample."""

    def __init__(self, bad: Sequence[BadRow]) -> None:
        self.records: list[dict[str, Any]] = []
        self.reasons: Counter[str] = Counter()
        for row in bad:
            known = _image_of(row.image) if row.image else {"where": row.where}
            self._reject({"row": row.number, **known}, row.kind, row.reason)

    def sample(self, config: IngestConfig, row: CaptionRow, fetched: Fetched) -> Sample | None:
        """The sample, unless something is wrong with it."""
        kind, reason = fetched.kind, fetched.reason
        if not kind and (wrong := _wrong_sum(row.checksum, fetched.content)):
            kind, reason = "checksum", wrong
        if not kind:
            try:
                image, suffix = stored(fetched.content, longest_side_px=config.longest_side_px)
                return _sample(config, row, fetched.content, image, suffix)
            except DataError as error:
                kind, reason = "image", str(error)
        self._reject({"row": row.number, **_image_of(row.image)}, kind, reason)
        return None

    def _reject(self, record: dict[str, Any], kind: str, reason: str) -> None:
        self.records.append({**record, "kind": kind, "reason": reason})
        self.reasons[kind] += 1


def _image_of(image: str) -> dict[str, str]:
    """What a record tells of it."""
    host = host_of(image) if is_url(image) else ""
    return {"image": image, **({"host": host} if host else {})}


def _sample(
    config: IngestConfig, row: CaptionRow, original: bytes, image: bytes, suffix: str
) -> Sample:
    extra = dict(row.extra)
    return Sample(
        key=f"{row.number:010d}",
        image=image,
        image_suffix=suffix,
        short=row.short,
        long=row.long,
        source=str(extra.pop("source", "") or config.origin),
        licence=str(extra.pop("licence", "") or config.licence),
        extra={**extra, "image": row.image, "sha256": hashlib.sha256(original).hexdigest()},
    )


def _wrong_sum(checksum: str, content: bytes) -> str:
    """What is wrong with the image's checksum; empty if it is right, or there is none."""
    kind, _, wanted = checksum.partition(":")
    if not kind:
        return ""
    found = hashlib.new(kind, content).hexdigest()
    return "" if found == wanted else f"{kind} is {found}, the row says {wanted}"
