"""Captions and images to shards, against a plain loop; and the memory it takes meanwhile.

By itself: PYTHONPATH=../parts python ingesting.py [ROWS]
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
import webdataset as wds
from PIL import Image

from lotlip.data.scenes import make_sample

NUM_ROWS, NUM_IMAGES, SHARD = 200_000, 1000, 1000
COLUMNS = ("image", "raw", "sIB", "lIB", "sSV", "lSV", "sLLA", "lLLA")
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Ingest:
    """What was measured."""

    num_rows: int
    csv_mb: float
    ours_s: float
    theirs_s: float
    memory: dict[str, tuple[float, float]]
    """Of each kind of process, MiB in the second tenth of the time and in the last."""


def make(folder: Path, num_rows: int) -> None:
    """A CSV as DreamLIP's, whose rows share the images."""
    (folder / "images").mkdir()
    samples = [make_sample(0, i) for i in range(NUM_IMAGES)]
    for i, sample in enumerate(samples):
        (folder / "images" / f"{i}.jpg").write_bytes(sample.image)
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for number in range(num_rows):
            sample = samples[number % NUM_IMAGES]
            short, long = f"{sample.short} {number}", f"{sample.long['scenes']} {number}"
            image = f"{number % NUM_IMAGES}.jpg"
            rows.writerow([image, short, short, long, short, long, short, long])


def plain(folder: Path) -> None:
    """What one would write by hand: rows to webdataset's shards, images looked at on the way."""
    (folder / "plain").mkdir()
    pattern = str(folder / "plain" / "shard-%06d.tar")
    with (
        (folder / "captions.csv").open(newline="") as file,
        wds.ShardWriter(pattern, maxcount=SHARD, maxsize=1e12, verbose=0) as writer,
    ):
        rows = csv.reader(file)
        next(rows)
        for number, (image, short, *rest) in enumerate(rows):
            content = (folder / "images" / image).read_bytes()
            Image.open(io.BytesIO(content)).load()
            long = dict(zip(("ib", "sv", "lla"), rest[1::2], strict=True))
            digest = hashlib.sha256(content).hexdigest()
            about = {"short": short, "long": long, "image": image, "sha256": digest}
            text = json.dumps(about).encode()
            writer.write({"__key__": f"{number:010d}", "jpg": content, "json": text})


def ours(folder: Path) -> None:
    from lotlip_platform.ingest import ingest
    from lotlip_platform.ingest_config import IngestConfig

    config = IngestConfig(
        format="dreamlip-csv",
        source=str(folder / "captions.csv"),
        images=str(folder / "images"),
        target=str(folder / "ours"),
        shard_size=SHARD,
    )
    result = ingest(config, lambda counts: None)
    assert result.num_rejected == 0


def measured(num_rows: int = NUM_ROWS) -> Ingest:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, num_rows)
        began = time.perf_counter()
        plain(folder)
        theirs_s = time.perf_counter() - began
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
        try:
            with _memory_watched() as seen:
                began = time.perf_counter()
                ours(folder)
                ours_s = time.perf_counter() - began
        finally:
            ray.shutdown()
        return Ingest(
            num_rows=num_rows,
            csv_mb=(folder / "captions.csv").stat().st_size / 1e6,
            ours_s=ours_s,
            theirs_s=theirs_s,
            memory={kind: _early_and_late(found) for kind, found in sorted(seen.items())},
        )


@contextmanager
def _memory_watched() -> Iterator[dict[str, list[tuple[float, float]]]]:
    """Seconds and MiB that are each kind of process' own, as long as the block takes."""
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            sums: dict[str, list[float]] = defaultdict(list)
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    kind = _kind(process)
                    if kind:
                        sums[kind].append(process.memory_full_info().uss / 2**20)
                except psutil.Error:
                    continue
            for kind, values in sums.items():
                seen[kind].append((time.monotonic(), max(values)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _kind(process: psutil.Process) -> str:
    if process.pid == os.getpid():
        return "driver"
    title = " ".join(process.cmdline())
    kinds = {"ray::_read": "task that reads the CSV", "ray::_write": "largest task that writes"}
    return next((kind for name, kind in kinds.items() if title.startswith(name)), "")


def _early_and_late(seen: list[tuple[float, float]]) -> tuple[float, float]:
    first, last = seen[0][0], seen[-1][0]

    def at(begin: float, end: float) -> float:
        span = last - first
        found = [m for s, m in seen if first + begin * span <= s <= first + end * span]
        return statistics.median(found)

    return at(0.1, 0.2), at(0.9, 1.0)


def section(found: Ingest) -> list[str]:
    """Of the report, as Markdown."""
    ours_per_s, theirs_per_s = found.num_rows / found.ours_s, found.num_rows / found.theirs_s
    lines = [
        "## Ingest",
        "",
        f"A CSV as DreamLIP's of {found.num_rows:,} rows ({found.csv_mb:,.0f} MB), images of 96 px",
        "in a folder; wall time on two cores, Ray running. The yardstick is a plain loop in one",
        "process: csv, Pillow, SHA-256, webdataset's ShardWriter.",
        "",
        "| what | rows/s | of the yardstick |",
        "|---|---|---|",
        f"| lotlip data ingest | {ours_per_s:,.0f} | {ours_per_s / theirs_per_s:.2f}x |",
        f"| the plain loop | {theirs_per_s:,.0f} | 1.00x |",
        "",
        "| memory of a process' own, MiB | in the second tenth of the time | in the last tenth |",
        "|---|---|---|",
    ]
    for kind, (early, late) in found.memory.items():
        lines.append(f"| {kind} | {early:.0f} | {late:.0f} |")
    return lines


if __name__ == "__main__":
    print("\n".join(section(measured(*map(int, sys.argv[1:])))))
