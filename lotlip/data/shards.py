"""Shards: tars of samples, written reproducibly and read with every loss noticed."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from webdataset.tariterators import group_by_keys, tar_file_iterator
from webdataset.writer import TarWriter

from lotlip.data.manifest import Manifest, Shard, write_manifest
from lotlip.data.sample import Sample, from_members, to_members
from lotlip.data.store import Store
from lotlip.errors import DataError


class DamagedShardError(DataError):
    """A shard whose bytes arrived whole but don't hold what its manifest says."""


_CHUNK_BYTES = 1 << 20

RawSample = Mapping[str, Any]
"""The members of one sample as webdataset reads them: `__key__`, `jpg`, `json`."""


def shard_name(index: int) -> str:
    return f"shard-{index:06d}.tar"


def write_shard(store: Store, name: str, samples: Iterable[Sample]) -> Shard:
    """Write one shard. The same samples give the same bytes, wherever and whenever.

    Raises: DataError if a key can't be read back, or the store can't be written.
    """
    return write_members(store, name, map(to_members, samples))


def write_members(store: Store, name: str, samples: Iterable[RawSample]) -> Shard:
    """Like `write_shard`, from the members of samples as webdataset takes them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        num_samples = 0
        try:
            with TarWriter(str(path), mtime=0, user="lotlip", group="lotlip") as writer:
                for sample in samples:
                    writer.write(dict(sample))
                    num_samples += 1
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error.strerror or error}; free some space, or set TMPDIR "
                "to a folder elsewhere"
            ) from error
        store.write_file(name, path)
        with path.open("rb") as file:
            return described(file, name, num_samples)


def described(file: BinaryIO, name: str, num_samples: int) -> Shard:
    """The manifest's entry of a written shard."""
    sha256 = hashlib.sha256()
    num_bytes = 0
    while chunk := file.read(_CHUNK_BYTES):
        sha256.update(chunk)
        num_bytes += len(chunk)
    return Shard(name=name, num_samples=num_samples, num_bytes=num_bytes, sha256=sha256.hexdigest())


class CaptionCount:
    """How many captions of each kind there are, and how long they are."""

    def __init__(self) -> None:
        self._lengths: dict[str, list[int]] = {}

    def add(self, sample: Sample) -> None:
        captions = {"short": sample.short}
        captions |= {f"long.{captioner}": caption for captioner, caption in sample.long.items()}
        for name, caption in captions.items():
            self._lengths.setdefault(name, []).append(len(caption.split()))

    def merge(self, other: CaptionCount) -> None:
        for name, lengths in other._lengths.items():
            self._lengths.setdefault(name, []).extend(lengths)

    def summary(self) -> dict[str, dict[str, float]]:
        """Length in words, by kind of caption."""
        return {
            name: {
                "num": len(lengths),
                "mean_words": round(sum(lengths) / len(lengths), 2),
                "max_words": max(lengths),
            }
            for name, lengths in sorted(self._lengths.items())
        }


def write_dataset(
    store: Store,
    shards: Iterable[tuple[Shard, CaptionCount]],
    made_by: Mapping[str, Any],
) -> Manifest:
    """Collect written shards and commit them with their manifest."""
    written, count = [], CaptionCount()
    for shard, captions in shards:
        written.append(shard)
        count.merge(captions)
    manifest = Manifest(shards=tuple(written), captions=count.summary(), made_by=made_by)
    write_manifest(store, manifest)
    return manifest


def read_shard(store: Store, shard: Shard) -> Iterator[RawSample]:
    """The samples of a shard in their order, undecoded.

    Samples before a damage are yielded, but perhaps the one just before it.

    Raises: DamagedShardError if the tar is torn or holds another number of samples than its
    manifest says, DataError if it is missing, changed or unreadable.
    """
    num_read = 0
    with store.open(shard.name, num_bytes=shard.num_bytes) as stream:
        for raw in _members(stream, f"{store.uri}/{shard.name}"):
            num_read += 1
            if num_read > shard.num_samples:
                break
            yield raw
    if num_read != shard.num_samples:
        raise DamagedShardError(
            f"{store.uri}/{shard.name} holds {'more than ' * (num_read > shard.num_samples)}"
            f"{min(num_read, shard.num_samples)} samples, its manifest says {shard.num_samples}"
        )


def read_samples(store: Store, manifest: Manifest) -> Iterator[Sample]:
    """All samples of a data set in their order. Raises: DataError at the first bad one."""
    for shard in manifest.shards:
        for raw in read_shard(store, shard):
            try:
                yield from_members(raw)
            except DataError as error:
                raise DataError(f"{store.uri}/{shard.name}: {error}") from error


def _members(stream: BinaryIO, where: str) -> Iterator[RawSample]:
    try:
        # It takes any stream, whatever its annotation says.
        files = tar_file_iterator(stream, handler=_reraise)  # type: ignore[arg-type]
        located = ({"__url__": where, **file} for file in files)
        yield from group_by_keys(located, handler=_reraise)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise DamagedShardError(f"{where} is damaged: {_reason(error)}") from error
    except DataError as error:
        raise DataError(_reason(error)) from error
    except OSError as error:
        raise DataError(f"cannot read {where}: {error.strerror or error}") from error


def _reason(error: Exception) -> str:
    """The error's text without the stream and the arguments that webdataset appends to it."""
    return str(error.args[0] if error.args else error).partition(" @ ")[0]


def _reraise(error: BaseException) -> bool:
    raise error
