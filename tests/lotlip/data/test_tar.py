"""What is in a tar comes out as webdataset reads it."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import tar_file_iterator

from lotlip.data.tar import tar_files

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
