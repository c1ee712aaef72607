"""What is in a tar comes out as webdataset reads it."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import tar_file_iterator

from lotlip.data.tar import MOST_BYTES, tar_files

Entry = tuple[str, bytes, dict[str, Any]]


def tar_of(entries: Iterable[Entry], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Names, contents, and what else is to be in the header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data, header in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in header.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def by_webdataset(content: bytes) -> list[dict[str, Any]]:
    def reraise(error: Exception) -> bool:
        raise error

    return list(tar_file_iterator(io.BytesIO(content), handler=reraise))  # type: ignore[arg-type]


NAMES = st.text(st.sampled_from("ab./_é\U0001f3f0"), min_size=1, max_size=6)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from([tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.AREGTYPE]),
        "mtime": st.sampled_from([1.5, 7, -1]),
        "uname": st.just("é"),
    },
)


@settings(max_examples=200, deadline=None)
@given(
    entries=st.lists(st.tuples(NAMES, st.binary(max_size=1100), HEADERS), max_size=4),
    long=st.sampled_from([0, 90, 120, 300]),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_any_tar_gives_what_webdataset_reads(entries: list[Entry], long: int, form: int) -> None:
    entries = [(name + "n" * long, data, header) for name, data, header in entries]
    content = tar_of(entries, form)
    assert list(tar_files(io.BytesIO(content))) == by_webdataset(content)


def test_a_compressed_tar_gives_what_webdataset_reads() -> None:
    content = tar_of([("1.jpg", b"image", {}), ("1.json", b"{}", {})])
    assert list(tar_files(io.BytesIO(gzip.compress(content)))) == by_webdataset(content)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_gives_what_webdataset_reads_or_an_error(data: st.DataObject) -> None:
    content = bytearray(tar_of([(f"{n}.jpg", b"i" * n * 400, {}) for n in range(4)]))
    if data.draw(st.booleans()):
        header = data.draw(st.sampled_from([0, 512, 1536, 3072]))
        content[header + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    cut = st.integers(0, len(content)) | st.integers(0, 5200) | st.just(len(content))
    same_as_webdataset(bytes(content[: data.draw(cut)]))


@pytest.mark.parametrize("size", [b"-0000000001", b"000_0000010", b"00000000009", b"           "])
def test_a_size_that_is_none_is_left_to_tarfile(size: bytes) -> None:
    content = bytearray(tar_of([(f"{n}.jpg", b"i" * 400, {}) for n in range(3)]))
    content[1024 + 124 : 1024 + 124 + len(size)] = size
    checksum = sum(content[1024:1536]) - sum(content[1024 + 148 : 1024 + 156]) + 8 * ord(" ")
    content[1024 + 148 : 1024 + 156] = b"%06o\0 " % checksum
    same_as_webdataset(bytes(content))


def same_as_webdataset(damaged: bytes) -> None:
    theirs: str | list[dict[str, Any]]
    try:
        theirs = by_webdataset(damaged)
    except tarfile.TarError as error:
        theirs = str(error.args[0]).partition(" @ ")[0]
    if isinstance(theirs, str):
        with pytest.raises(tarfile.TarError) as caught:
            list(tar_files(io.BytesIO(damaged)))
        assert str(caught.value.args[0]).partition(" @ ")[0] == theirs
    else:
        assert list(tar_files(io.BytesIO(damaged))) == theirs


def hostile(info: tarfile.TarInfo, content: bytes = b"") -> bytes:
    """A tar with one member that is not what it should be, and a good one behind it."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        tar.addfile(info, io.BytesIO(content))
        good = tarfile.TarInfo("good.txt")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"good"))
    return written.getvalue()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_passed_over(kind: bytes) -> None:
    info = tarfile.TarInfo("sample.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    assert list(tar_files(io.BytesIO(hostile(info)))) == [{"fname": "good.txt", "data": b"good"}]


def test_a_name_that_leads_out_is_a_name_and_nothing_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    info = tarfile.TarInfo("../../outside.jpg")
    info.size = 3
    found = list(tar_files(io.BytesIO(hostile(info, b"abc"))))
    assert found[0] == {"fname": "../../outside.jpg", "data": b"abc"}
    assert list(tmp_path.rglob("*")) == []


def test_a_bomb_that_unpacks_to_gigabytes_is_refused_by_its_header() -> None:
    info = tarfile.TarInfo("bomb.jpg")
    info.size = MOST_BYTES + 1
    header = info.tobuf(tarfile.USTAR_FORMAT)
    for content in (header, gzip.compress(header + bytes(1 << 20))):
        with pytest.raises(tarfile.ReadError, match=r"bomb\.jpg has 1073741825 bytes"):
            list(tar_files(io.BytesIO(content)))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_name_that_unpacks_to_gigabytes_is_refused_by_its_header(kind: bytes) -> None:
    info = tarfile.TarInfo("@LongLink")
    info.type, info.size = kind, 1 << 33
    content = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    with pytest.raises(tarfile.ReadError, match=r"a header has 8589934592 bytes"):
        list(tar_files(io.BytesIO(content)))
