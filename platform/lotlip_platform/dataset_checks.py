"""Whether a data set is whole: every byte, sample and image of it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from lotlip.data import manifest as manifests
from lotlip.data.manifest import Shard, read_manifest
from lotlip.data.sample import from_members
from lotlip.data.shards import DamagedShardError, read_shard
from lotlip.data.store import FolderStore, Store
from lotlip.errors import ConfigError, DataError
from lotlip.images import decode
from lotlip_platform.storage import open_store

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class CheckResult:
    """What `check` read, and all that it found wrong, a line each."""

    num_shards: int
    num_samples: int
    num_bytes: int
    problems: list[str]


def check(uri: str, on_progress: Callable[[int, int], None]) -> CheckResult:
    """Read everything and list what is missing, too much, changed or unreadable.

    `on_progress` gets the numbers of samples behind it and in the manifest. Damage never raises.
    Raises: DataError if there is no manifest or the store can't be reached, ConfigError if there is
    no room to copy a shard to.
    """
    store = open_store(uri)
    try:
        manifest = read_manifest(store)
    except DataError as error:
        if not store.exists(manifests.NAME):
            raise
        return CheckResult(0, 0, 0, [str(error)])
    listed = {shard.name for shard in manifest.shards}
    present = set(store.list())
    problems, num_shards, num_samples, num_bytes, behind = [], 0, 0, 0, 0
    for shard in manifest.shards:
        if shard.name not in present:
            problems.append(f"{shard.name} is missing")
        else:
            found = _check_shard(
                store,
                shard,
                lambda done, base=behind: on_progress(base + done, manifest.num_samples),
            )
            num_shards += 1
            num_samples += found.num_samples
            num_bytes += found.num_bytes
            problems += found.problems
        behind += shard.num_samples
        on_progress(behind, manifest.num_samples)
    problems += [
        f"{name} is not in the manifest: remove it if it is not needed"
        for name in sorted(present - listed - {manifests.NAME})
    ]
    return CheckResult(num_shards, num_samples, num_bytes, problems)


def _check_shard(store: Store, shard: Shard, on_sample: Callable[[int], None]) -> CheckResult:
    with tempfile.TemporaryDirectory() as folder:
        try:
            num_bytes, sha256 = _fetch(store, shard.name, Path(folder) / shard.name)
        except DataError as error:
            return CheckResult(1, 0, 0, [f"{shard.name}: {error}"])
        problems = []
        if num_bytes != shard.num_bytes:
            problems.append(f"{shard.name} has {num_bytes} bytes, expected {shard.num_bytes}")
        elif sha256 != shard.sha256:
            problems.append(
                f"{shard.name} has sha256 {sha256[:12]}.., expected {shard.sha256[:12]}.."
            )
        num_samples = 0
        here, told = FolderStore(folder), ""
        for place, raw in enumerate(read_shard(here, replace(shard, num_bytes=num_bytes))):
            if not isinstance(raw, DamagedShardError):
                problems += _check_sample(raw, f"{shard.name} sample {place}")
                num_samples += 1
            elif str(raw) != told:  # one damage takes many samples
                told = str(raw)
                problems.append(f"{told.removeprefix(f'{here.uri}/')} (at sample {place})")
            on_sample(place + 1)
        return CheckResult(1, num_samples, num_bytes, problems)


def _check_sample(raw: Mapping[str, Any], where: str) -> list[str]:
    try:
        sample = from_members(raw)
    except DataError as error:
        return [f"{where}: {error}"]
    try:
        decode(sample.image)
    except DataError as error:
        return [f"{where} ({sample.key}): {error}"]
    return []


def _fetch(store: Store, name: str, path: Path) -> tuple[int, str]:
    """Copy an object; its size and sha256.

    Raises: DataError if it can't be read, ConfigError if there is no room for the copy.
    """
    sha256 = hashlib.sha256()
    try:
        with store.open(name) as source, path.open("wb") as target:
            while chunk := _read_chunk(source):
                sha256.update(chunk)
                target.write(chunk)
        return path.stat().st_size, sha256.hexdigest()
    except OSError as error:
        raise ConfigError(
            f"cannot copy {name} to {path.parent}: {error.strerror}; make room, or set TMPDIR to a "
            "folder elsewhere"
        ) from error


def _read_chunk(source: BinaryIO) -> bytes:
    try:
        return source.read(CHUNK_BYTES)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
