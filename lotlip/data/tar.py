"""The files in a tar, read as a stream.

Shards consist of plain headers, which are read here, at a quarter of tarfile's time; whatever else
there is (long names, links, extensions, compression, damage) is left to tarfile. What comes out is
what webdataset reads.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Any, Protocol, Self

MOST_BYTES = 1 << 30
"""Of a file; one that says it has more would fill the memory, as a compressed one easily can."""
_MOST_NAME_BYTES = 1 << 20
"""Of a long name or of attributes, which tarfile reads whole before it tells of the file."""
_BLOCK = 512
_META = re.compile(r"__[^/]*__($|/)")
_ABOUT_THE_NEXT = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_PLAIN_FILE = (b"0", b"\0")


class Stream(Protocol):
    """What can only be read on."""

    def read(self, num_bytes: int, /) -> bytes:
        """So many bytes; fewer only at the end."""
        ...


def tar_files(stream: Stream) -> Iterator[dict[str, Any]]:
    """Each regular file as `fname` and `data`, as webdataset's tar_file_iterator gives them.

    Raises: tarfile.TarError where the tar is damaged or a file too large, and what `stream` raises.
    """
    is_first = True
    while (header := stream.read(_BLOCK)) or is_first:
        plain = _plain(header)
        if plain is None:
            if is_first or _is_header(header):
                # It takes any stream, whatever its annotation says.
                rest: Any = _Again(header, stream)
                yield from _by_tarfile(rest)
            return  # behind the last header that makes sense, as tarfile
        name, num_bytes = plain
        _check_size(name, num_bytes)
        data = stream.read(num_bytes)
        if len(data) < num_bytes:
            raise tarfile.ReadError("unexpected end of data")
        padding = -num_bytes % _BLOCK
        is_whole = len(stream.read(padding)) == padding
        yield {"fname": name, "data": data}
        if not is_whole:
            raise tarfile.ReadError("unexpected end of data")
        is_first = False


def _by_tarfile(stream: Any) -> Iterator[dict[str, Any]]:
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as opened:
        for member in opened:
            if member.isreg() and not _is_meta(member.name):  # links lead elsewhere
                _check_size(member.name, member.size)
                file = opened.extractfile(member)
                assert file is not None, "what a regular file has"
                yield {"fname": member.name, "data": file.read()}
            # Or it would keep all of them.
            opened.members = []  # pyright: ignore[reportAttributeAccessIssue]


class _Member(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _ABOUT_THE_NEXT and found.size > _MOST_NAME_BYTES:
            raise tarfile.ReadError(
                f"a header has {found.size} bytes, of which {_MOST_NAME_BYTES} are taken"
            )
        return found


def _is_meta(name: str) -> bool:
    """Whether webdataset has it for itself."""
    is_own = "/" not in name and name.startswith("__") and name.endswith("__")
    return is_own or _META.match(name) is not None


def _check_size(name: str, num_bytes: int) -> None:
    if num_bytes > MOST_BYTES:
        raise tarfile.ReadError(f"{name} has {num_bytes} bytes, of which {MOST_BYTES} are taken")


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:  # zeros, at the end of the archive, or damage
        return False
    return True


def _plain(header: bytes) -> tuple[str, int] | None:
    """Name and size in the header of a file like those in shards, None if it is of another kind."""
    name = header[:100].partition(b"\0")[0]
    if (
        len(header) < _BLOCK
        or header[156:157] not in _PLAIN_FILE
        or any(header[345:500])  # a longer name, or times
        or name.endswith(b"/")  # a folder
        or name.startswith(b"__")  # perhaps webdataset's own
    ):
        return None
    try:
        if _octal(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return None
        return name.decode(errors="surrogateescape"), _octal(header[124:136])
    except ValueError:  # a size beyond 8 GiB, or damage
        return None


def _octal(field: bytes) -> int:
    digits = field.partition(b"\0")[0].strip()
    if not digits.isdigit():
        raise ValueError(digits)
    return int(digits, 8)


class _Again:
    """A stream once more from a block on that was already read."""

    def __init__(self, block: bytes, stream: Stream) -> None:
        self._block, self._stream = block, stream

    def read(self, num_bytes: int) -> bytes:
        taken, self._block = self._block[:num_bytes], self._block[num_bytes:]
        return taken + self._stream.read(num_bytes - len(taken))
