"""Shards: tars of samples, written reproducibly and read with every loss noticed."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from webdataset.tariterators import base_plus_ext, group_by_keys
from webdataset.writer import TarWriter

from lotlip.data.manifest import SEEK_EVERY, Manifest, Shard, write_manifest
from lotlip.data.sample import Sample, from_members, to_members
from lotlip.data.store import Store
from lotlip.data.tar import tar_files
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
        num_samples, offsets, last = 0, [], None
        try:
            with TarWriter(str(path), mtime=0, user="lotlip", group="lotlip") as writer:
                for sample in samples:
                    if sample["__key__"] == last:
                        raise DataError(
                            f"{name}: samples {num_samples - 1} and {num_samples} share the key "
                            f"{last}, so they could not be told apart: rename them"
                        )
                    if num_samples % SEEK_EVERY == 0:
                        offsets.append(writer.tarstream.offset)
                    writer.write(dict(sample))
                    num_samples, last = num_samples + 1, sample["__key__"]
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            num_bytes = path.stat().st_size
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error.strerror or error}; free some space, or set TMPDIR "
                "to a folder elsewhere"
            ) from error
        store.write_file(name, path)
    return Shard(
        name=name,
        num_samples=num_samples,
        num_bytes=num_bytes,
        sha256=sha256,
        offsets=tuple(offsets),
    )


def described(file: BinaryIO, name: str) -> Shard:
    """The manifest's entry of a written shard. Raises: DamagedShardError if it isn't a tar."""
    hashed = _Hashed(file)
    num_samples, offsets, last = 0, [], None
    try:
        with tarfile.open(fileobj=hashed, mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                key, _ = base_plus_ext(member.name)
                if key != last:
                    if num_samples % SEEK_EVERY == 0:
                        offsets.append(member.offset)
                    num_samples, last = num_samples + 1, key
    except tarfile.TarError as error:
        raise DamagedShardError(f"{name} is damaged: {error}") from error
    while hashed.read(_CHUNK_BYTES):
        pass  # behind the end of the archive
    return Shard(
        name=name,
        num_samples=num_samples,
        num_bytes=hashed.num_bytes,
        sha256=hashed.sha256.hexdigest(),
        offsets=tuple(offsets),
    )


class _Hashed:
    """A file that hashes and counts what is read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.num_bytes, self.sha256 = file, 0, hashlib.sha256()

    def read(self, num_bytes: int) -> bytes:
        chunk = self.file.read(num_bytes)
        self.num_bytes += len(chunk)
        self.sha256.update(chunk)
        return chunk


class CaptionCount:
    """How many captions of each kind there are, and how long they are."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, float, float]] = {}
        """Number of captions, words of all, words of the longest."""

    def add(self, sample: Sample) -> None:
        captions = {"short": sample.short}
        captions |= {f"long.{captioner}": caption for captioner, caption in sample.long.items()}
        for name, caption in captions.items():
            if words := len(caption.split()):
                self._add(name, 1, words, words)

    def merge(self, other: CaptionCount) -> None:
        for name, found in other._found.items():
            self._add(name, *found)

    def add_summary(self, summary: Mapping[str, Mapping[str, float]]) -> None:
        """What `summary` gave of other captions."""
        for name, found in summary.items():
            num = int(found["num"])
            self._add(name, num, num * found["mean_words"], found["max_words"])

    def summary(self) -> dict[str, dict[str, float]]:
        """Length in words, by kind of caption."""
        return {
            name: {"num": num, "mean_words": round(words / num, 2), "max_words": longest}
            for name, (num, words, longest) in sorted(self._found.items())
        }

    def _add(self, name: str, num: int, words: float, longest: float) -> None:
        before = self._found.get(name, (0, 0.0, 0))
        self._found[name] = before[0] + num, before[1] + words, max(before[2], longest)


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


def read_shard(
    store: Store, shard: Shard, *, start: int = 0, tag: str = ""
) -> Generator[RawSample | DamagedShardError, None, None]:
    """One item for each sample from number `start` on: its members, or the damage that took it.

    A damage takes the samples from there, perhaps the one just before it, too, to the next offset
    that the manifest knows. What a sample is doesn't depend on where reading started. `tag` is the
    version of the shard that the reader relies on, if it does.

    Raises: DataError if the shard is missing, changed or unreadable.
    """
    where, number = f"{store.uri}/{shard.name}", start
    _, from_byte = shard.part(start)
    size, first = shard.num_bytes, from_byte.start
    with store.open(shard.name, num_bytes=size, tag=tag, start=first) as stream:
        while number < shard.num_samples:
            samples, extent = shard.part(number)
            part = _Part(stream, len(extent), where)
            yield from islice(_exactly(samples, part), number - samples.start, None)
            part.skip()
            number = samples.stop


def read_samples(
    store: Store, manifest: Manifest, *, start: int = 0
) -> Generator[Sample, None, None]:
    """The samples of a data set in their order, from number `start` on.

    Reads from the last offset before it that the manifest knows. Raises: DataError at the first bad
    one.
    """
    for shard in manifest.shards:
        if start >= shard.num_samples:
            start -= shard.num_samples
            continue
        for raw in read_shard(store, shard, start=start):
            if isinstance(raw, DamagedShardError):
                raise raw
            try:
                yield from_members(raw)
            except DataError as error:
                raise DataError(f"{store.uri}/{shard.name}: {error}") from error
        start = 0


def read_sample(store: Store, manifest: Manifest, number: int) -> Sample:
    """Sample `number` of a data set, counted through all shards.

    Raises: DataError; IndexError if there is no such sample.
    """
    if not 0 <= number < manifest.num_samples:
        raise IndexError(number)
    with closing(read_samples(store, manifest, start=number)) as samples:
        return next(samples)


class _Part:
    """The next so many bytes of a stream, as a file. Raises: DataError."""

    def __init__(self, stream: BinaryIO, num_bytes: int, where: str) -> None:
        self._stream, self._left, self.where = stream, num_bytes, where

    def read(self, num_bytes: int) -> bytes:
        try:
            chunk = self._stream.read(min(num_bytes, self._left))
        except OSError as error:
            raise DataError(f"cannot read {self.where}: {error.strerror or error}") from error
        self._left -= len(chunk)
        return chunk

    def skip(self) -> None:
        while self.read(_CHUNK_BYTES):
            pass


def _exactly(samples: range, part: _Part) -> Iterator[RawSample | DamagedShardError]:
    """The samples of a part of a shard, as many as its manifest says: the rest are damage."""
    of, count = f" from sample {samples.start} on" if samples.start else "", len(samples)
    num_read, held, damage = 0, None, None
    try:
        for raw in _members(part):
            num_read += 1
            if num_read > count:
                break
            if held is not None:
                yield held
            held = raw
    except DamagedShardError as error:
        damage = error
    if num_read > count:
        # Which of them is the one too many can't be known; the last must stand for it.
        held = None
        num_read, found = count - 1, f"more than {count}"
    else:
        found = str(num_read)
    if held is not None:
        yield held
    says = f"{part.where} holds {found} samples{of}, its manifest says {count}"
    for _ in range(num_read, count):
        yield damage or DamagedShardError(says)


def _members(part: _Part) -> Iterator[RawSample]:
    try:
        located = ({"__url__": part.where, **file} for file in tar_files(part))
        yield from group_by_keys(located)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise DamagedShardError(f"{part.where} is damaged: {_reason(error)}") from error
    except DataError as error:
        raise DataError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The error's text without the stream and the arguments that webdataset appends to it."""
    return str(error.args[0] if error.args else error).partition(" @ ")[0]
