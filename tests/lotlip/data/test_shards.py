from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lotlip.data.manifest import Manifest, Shard, read_manifest
from lotlip.data.sample import Sample
from lotlip.data.shards import (
    CaptionCount,
    DamagedShardError,
    RawSample,
    read_sample,
    read_samples,
    read_shard,
    write_dataset,
    write_shard,
)
from lotlip.data.store import FolderStore
from lotlip.errors import DataError


def plain(number: int, **fields: object) -> Sample:
    values = {
        "image": bytes([number % 256]) * 700,
        "short": f"scene {number}",
        "long": {"a": "b c"},
    }
    return Sample(key=f"{number:06d}", **{**values, **fields})  # type: ignore[arg-type]


SAMPLES = [plain(number) for number in range(6)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderStore, Shard, bytes]:
    store = FolderStore(tmp_path_factory.mktemp("shards"))
    shard = write_shard(store, "shard.tar", SAMPLES)
    return store, shard, store.read("shard.tar")


def read_until_error(
    store: FolderStore, shard: Shard, content: bytes
) -> tuple[list[str], DataError | None]:
    """The keys of what `content` gives as a shard of its own size, and how that ended."""
    store.write("torn.tar", content)
    keys: list[str] = []
    items = list(read_shard(store, replace(shard, name="torn.tar", num_bytes=len(content))))
    assert len(items) == shard.num_samples
    for item in items:
        if isinstance(item, DamagedShardError):
            assert {str(other) for other in items[len(keys) :]} == {str(item)}
            return keys, item
        keys.append(item["__key__"])
    return keys, None


def header_offsets(content: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [member.offset for member in tar.getmembers()]


def test_samples_survive_their_shards(
    scene_store: FolderStore, scene_samples: list[Sample]
) -> None:
    manifest = read_manifest(scene_store)
    assert [shard.num_samples for shard in manifest.shards] == [60, 11, 49, 1, 78, 51, 50]
    assert list(read_samples(scene_store, manifest)) == scene_samples


def test_the_same_samples_give_the_same_bytes(
    tmp_path: Path, written: tuple[FolderStore, Shard, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shard, content = written
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    umask = os.umask(0o077)
    try:
        again = write_shard(FolderStore(tmp_path), "shard.tar", iter(SAMPLES))
    finally:
        os.umask(umask)
    assert again == shard
    assert (tmp_path / "shard.tar").read_bytes() == content
    assert write_shard(FolderStore(tmp_path), "shard.tar", SAMPLES[::-1]).sha256 != shard.sha256


def test_a_data_set_counts_its_samples_and_captions(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)

    def shards() -> Iterator[tuple[Shard, CaptionCount]]:
        for place, samples in enumerate([SAMPLES[:4], [plain(9, short="a", long={"z": "x y z"})]]):
            count = CaptionCount()
            for sample in samples:
                count.add(sample)
            yield write_shard(store, f"{place}.tar", samples), count
            assert not store.exists("manifest.json"), "the manifest comes last"

    manifest = write_dataset(store, shards(), {"command": "test"})
    assert read_manifest(store) == manifest
    assert [shard.num_samples for shard in manifest.shards] == [4, 1]
    assert manifest.num_bytes == sum((tmp_path / f"{k}.tar").stat().st_size for k in range(2))
    assert manifest.captions == {
        "long.a": {"num": 4, "mean_words": 2.0, "max_words": 2},
        "long.z": {"num": 1, "mean_words": 3.0, "max_words": 3},
        "short": {"num": 5, "mean_words": 1.8, "max_words": 2},
    }


def test_a_shard_that_was_cut_after_its_manifest_was_written_is_an_error(
    tmp_path: Path, written: tuple[FolderStore, Shard, bytes]
) -> None:
    store, shard, content = FolderStore(tmp_path), *written[1:]
    for changed in (content[:-512], content + b"x", b""):
        store.write(shard.name, changed)
        with pytest.raises(DataError, match=rf"has {len(changed)} bytes, expected {len(content)}"):
            next(read_shard(store, shard))


def test_a_missing_shard_is_an_error(
    tmp_path: Path, written: tuple[FolderStore, Shard, bytes]
) -> None:
    with pytest.raises(DataError, match=r"shard.tar does not exist"):
        next(read_shard(FolderStore(tmp_path), written[1]))


def test_a_shard_torn_anywhere_gives_what_came_before_and_an_error(
    written: tuple[FolderStore, Shard, bytes],
) -> None:
    store, shard, content = written
    headers = header_offsets(content)
    keys = [sample.key for sample in SAMPLES]
    image, text = headers[6], headers[7]  # of sample 3
    for cut, num_whole, reason in [
        (image, 3, "holds 3 samples, its manifest says 6"),
        (image + 100, 3, "holds 3 samples, its manifest says 6"),
        (image + 512 + 512, 2, "is damaged: unexpected end of data"),
        (image + 512 + 300, 2, "is damaged: unexpected end of data"),
        (text, 4, "holds 4 samples, its manifest says 6"),
        (text + 100, 4, "holds 4 samples, its manifest says 6"),
        (text + 530, 3, "is damaged: unexpected end of data"),
        (0, 0, "is damaged: empty file"),
    ]:
        found, error = read_until_error(store, shard, content[:cut])
        assert found == keys[:num_whole], cut
        assert isinstance(error, DamagedShardError), cut
        assert str(error) == f"{store.uri}/torn.tar {reason}", cut


def test_a_damaged_header_is_noticed_at_the_same_size(
    written: tuple[FolderStore, Shard, bytes],
) -> None:
    store, shard, content = written
    offset = header_offsets(content)[6]
    damaged = content[:offset] + bytes(8) + content[offset + 8 :]
    found, error = read_until_error(store, shard, damaged)
    assert found == [sample.key for sample in SAMPLES[:3]]
    assert isinstance(error, DamagedShardError)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_gives_anything_but_true_samples_and_a_one_line_error(
    written: tuple[FolderStore, Shard, bytes], data: st.DataObject
) -> None:
    store, shard, content = written
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        header = data.draw(st.sampled_from(header_offsets(content)))
        damaged[header + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    found, error = read_until_error(store, shard, bytes(damaged))
    keys = [sample.key for sample in SAMPLES]
    assert found == keys[: len(found)]
    assert error is not None or found == keys
    assert error is None or (isinstance(error, DamagedShardError) and "\n" not in str(error))


def test_samples_that_the_manifest_does_not_know_are_an_error(
    written: tuple[FolderStore, Shard, bytes],
) -> None:
    store, shard, content = written
    found, error = read_until_error(store, replace(shard, num_samples=4), content)
    assert found == [sample.key for sample in SAMPLES[:3]]
    assert isinstance(error, DamagedShardError)
    assert str(error).endswith("torn.tar holds more than 4 samples, its manifest says 4")


def test_two_samples_of_one_key_are_an_error(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with pytest.raises(DataError, match=r"samples 1 and 2 share the key 000002, so they could not"):
        write_shard(store, "shard.tar", [plain(1), plain(2), plain(2)])
    assert store.list() == []
    members = {"1.jpg": b"i", "1.json": b"{}", "2.jpg": b"i", "2.json": b"{}"}
    content = tar_of(members)[: 8 * 512] + tar_of({"2.jpg": b"i", "2.json": b"{}"})
    store.write("shard.tar", content)
    shard = Shard(name="shard.tar", num_samples=3, num_bytes=len(content), sha256="")
    first, *rest = read_shard(store, shard)
    assert not isinstance(first, DamagedShardError)
    (told,) = {str(item) for item in rest}
    assert told.startswith(f"{store.uri}/shard.tar is damaged: 2.jpg: duplicate file name")


@pytest.fixture(scope="module")
def long_shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderStore, Shard, bytes]:
    """A shard of three parts: 128, 128 and 44 samples."""
    store = FolderStore(tmp_path_factory.mktemp("long"))
    samples = [plain(number, image=b"i" * number) for number in range(300)]
    shard = write_shard(store, "shard.tar", samples)
    return store, shard, store.read("shard.tar")


def keys_from(store: FolderStore, shard: Shard, start: int) -> list[str]:
    """A key for each sample that is there, and the damage for each that isn't."""
    items = read_shard(store, shard, start=start)
    return [str(item) if isinstance(item, DamagedShardError) else item["__key__"] for item in items]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_where_reading_starts_changes_nothing_whatever_the_damage(
    long_shard: tuple[FolderStore, Shard, bytes], data: st.DataObject
) -> None:
    store, shard, content = long_shard
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        header = data.draw(st.sampled_from(header_offsets(content)))
        damaged[header + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    store.write("damaged.tar", bytes(damaged))
    shard = replace(shard, name="damaged.tar")
    whole = keys_from(store, shard, 0)
    assert len(whole) == 300
    start = data.draw(st.integers(0, 299))
    assert keys_from(store, shard, start) == whole[start:]


def test_a_damage_takes_samples_up_to_the_next_known_offset_only(
    long_shard: tuple[FolderStore, Shard, bytes],
) -> None:
    store, shard, content = long_shard
    offset = header_offsets(content)[2 * 140]
    store.write("damaged.tar", content[:offset] + bytes(512) + content[offset + 512 :])
    found = keys_from(store, replace(shard, name="damaged.tar"), 0)
    lost = [place for place, key in enumerate(found) if key != f"{place:06d}"]
    assert lost == list(range(140, 256))
    assert "holds 12 samples from sample 128 on, its manifest says 128" in found[140]


def test_reading_from_the_middle_reads_little_more_than_it_needs(
    long_shard: tuple[FolderStore, Shard, bytes], tmp_path: Path
) -> None:
    store, shard, content = long_shard
    # What lies before the part that is read might as well not be a tar.
    store.write("ruined.tar", b"?" * shard.offsets[2] + content[shard.offsets[2] :])
    keys = keys_from(store, replace(shard, name="ruined.tar"), 280)
    assert keys == [f"{number:06d}" for number in range(280, 300)]
    unknown = replace(shard, offsets=())
    assert keys_from(store, unknown, 280) == keys


def tar_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({}, "sample 1: no json beside the image"),
        ({"1.json": b'{"short": '}, "sample 1: its json does not parse"),
    ],
)
def test_a_sample_without_a_usable_json_is_an_error_that_names_shard_and_sample(
    tmp_path: Path, text: dict[str, bytes], message: str
) -> None:
    store = FolderStore(tmp_path)
    good = b'{"short": "x"}'
    content = tar_of({"0.jpg": b"i", "0.json": good, "1.jpg": b"i", **text, "2.json": good})
    store.write("shard.tar", content)
    shard = Shard(name="shard.tar", num_samples=3, num_bytes=len(content), sha256="")
    assert len(list(read_shard(store, shard))) == 3
    samples = read_samples(store, Manifest(shards=(shard,)))
    assert next(samples).key == "0"
    with pytest.raises(DataError, match=rf"{tmp_path}/shard.tar: {message}"):
        next(samples)


class _BreakingStore(FolderStore):
    """A folder whose files fail to be read beyond their first half."""

    error: Exception

    def open(self, name: str, *, start: int = 0, **relied_on: Any) -> BinaryIO:
        return _Breaking(super().open(name, **relied_on), self.error)  # type: ignore[return-value]


class _Breaking(io.RawIOBase):
    def __init__(self, file: BinaryIO, error: Exception) -> None:
        self._file, self._error, self._left = file, error, 3

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise self._error
        return self._file.read(min(size, 1024))

    def close(self) -> None:
        self._file.close()
        super().close()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(5, "Input/output error"), "cannot read .*/shard.tar: Input/output error"),
        (DataError("s3://x/y: gave up"), "s3://x/y: gave up"),
    ],
)
def test_a_store_that_fails_while_reading_is_no_damage_but_one_clear_line(
    tmp_path: Path, written: tuple[FolderStore, Shard, bytes], error: Exception, message: str
) -> None:
    shutil.copy(Path(written[0].uri) / "shard.tar", tmp_path)
    store = _BreakingStore(tmp_path)
    store.error = error
    with pytest.raises(DataError, match=f"^{message}$") as caught:
        list[RawSample](read_shard(store, written[1]))
    assert not isinstance(caught.value, DamagedShardError)


@pytest.mark.parametrize("number", [0, 59, 60, 70, 120, 249, 299])
def test_one_sample_is_read_by_its_number(scene_store, scene_samples, number):
    manifest = read_manifest(scene_store)
    assert read_sample(scene_store, manifest, number) == scene_samples[number]


@pytest.mark.parametrize("number", [-1, 300])
def test_a_sample_that_there_is_not_is_an_index_error(scene_store, number):
    with pytest.raises(IndexError):
        read_sample(scene_store, read_manifest(scene_store), number)
