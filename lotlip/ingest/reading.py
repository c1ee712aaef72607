"""Caption files as streams of rows: of any size, in memory that does not grow."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, BinaryIO

import ijson
import pyarrow
import pyarrow.parquet

from lotlip.data.store import FolderStore, Store
from lotlip.data.tar import tar_files
from lotlip.errors import ConfigError, DataError
from lotlip.ingest import rows
from lotlip.ingest.rows import BadRow, CaptionRow, ColumnMap

_SUFFIXES = {
    "dreamlip-csv": (".csv", ".tsv"),
    "recap-csv": (".csv", ".tsv"),
    "csv": (".csv", ".tsv"),
    "dreamlip-json": (".json", ".jsonl", ".tar"),
    "sharegpt4v": (".json",),
    "jsonl": (".jsonl",),
    "parquet": (".parquet",),
}
_PARQUET_ROWS = 1000
_COPY_BYTES = 1 << 20
_LARGEST_JSON = 1 << 24
_LOOKED_AT = 1000
"""Lines of a JSONL file whose keys are taken for all that it has."""

Place = tuple[str, Callable[[int], CaptionRow]]
"""Where a row is, and what makes it of its number; that raises ValueError for a bad one."""


def find_files(store: Store, name: str, format: str) -> list[str]:
    """The files of a source, which is one or a folder of them. Raises: DataError."""
    suffixes = _SUFFIXES[format]
    if name:
        if not store.exists(name):
            raise DataError(f"{store.uri}/{name} does not exist")
        return [name]
    found = [one for one in store.list() if _plain(one, format).endswith(suffixes)]
    if not found:
        raise DataError(
            f"{store.uri} holds no {' or '.join(suffixes)} file, as format {format} has"
        )
    return found


def _plain(name: str, format: str) -> str:
    """Without the suffix of what is unpacked on the way; Parquet packs its own columns."""
    return name if format == "parquet" else name.removesuffix(".gz")


def read_rows(
    store: Store, files: Sequence[str], format: str, columns: ColumnMap | None = None
) -> Iterator[CaptionRow | BadRow]:
    """All rows of the files in their order, numbered from 0.

    Raises: DataError if a file can't be read to its end; ConfigError if it lacks a column.
    """
    number = itertools.count()
    for name in files:
        where = f"{store.uri}/{name}"
        try:
            for place, make in _places(store, name, format, columns):
                yield _made(next(number), place, make)
        except _DAMAGED as error:
            raise DataError(f"{where} is damaged: {' '.join(str(error).split())[:200]}") from error


_DAMAGED = (
    *(EOFError, gzip.BadGzipFile, ijson.JSONError, tarfile.TarError),
    *(pyarrow.ArrowInvalid, zlib.error, OSError, UnicodeDecodeError),
)


def _made(number: int, place: str, make: Callable[[int], CaptionRow]) -> CaptionRow | BadRow:
    try:
        return make(number)
    except (ValueError, RecursionError) as error:
        return BadRow(number=number, where=place, reason=str(error))


def _places(store: Store, name: str, format: str, columns: ColumnMap | None) -> Iterator[Place]:
    where = f"{store.uri}/{name}"
    if format == "parquet":
        assert columns is not None, "as the config makes sure"
        yield from _parquet(store, name, columns)
        return
    with _opened(store, name) as file:
        if format in ("csv", "dreamlip-csv", "recap-csv"):
            yield from _csv(file, where, format, columns)
        elif format == "sharegpt4v":
            for index, entry in enumerate(ijson.items(file, "item", use_float=True)):
                yield f"{where} entry {index}", lambda n, e=entry: rows.sharegpt4v(n, e)
        elif where.removesuffix(".gz").endswith(".tar"):
            for member in tar_files(file):
                if member["fname"].endswith(".json"):
                    place = f"{where}:{member['fname']}"
                    yield place, lambda n, d=member["data"]: rows.dreamlip_json(n, _json(d))
        elif where.removesuffix(".gz").endswith(".json"):
            content = file.read(_LARGEST_JSON)
            if len(content) == _LARGEST_JSON:
                raise DataError(f"{where} is larger than the JSON of one image: is it a list?")
            yield where, lambda n: rows.dreamlip_json(n, _json(content))
        else:
            yield from _jsonl(file, where, columns)


@contextmanager
def _opened(store: Store, name: str) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        file = stack.enter_context(store.open(name))
        if name.endswith(".gz"):
            file = stack.enter_context(gzip.open(file))
        yield file  # type: ignore[misc]


def _csv(file: BinaryIO, where: str, format: str, columns: ColumnMap | None) -> Iterator[Place]:
    # Bytes that are no UTF-8 are found out by row, not by file.
    wrapped = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    with wrapped as text:
        reader = csv.reader(
            text, delimiter="\t" if where.removesuffix(".gz").endswith(".tsv") else ","
        )
        header = next(reader, None)
        if header is None:
            raise DataError(f"{where} is empty: it should begin with a header")
        make = _maker(header, where, format, columns)
        while True:
            begins = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"{where} line {begins}", _raises(str(error))
                continue
            if values:  # an empty line is no row
                yield f"{where} line {begins}", lambda n, v=values: make(n, _checked(v))


def _maker(
    header: Sequence[str], where: str, format: str, columns: ColumnMap | None
) -> Callable[[int, Sequence[str]], CaptionRow]:
    """What makes a row of a CSV's values. Raises: ConfigError, DataError for a wrong header."""
    try:
        if format == "recap-csv":
            order = rows.recap_order(header)
            return lambda number, values: rows.recap_csv(number, values, order)
        if format == "dreamlip-csv":
            if len(header) != 8:
                raise ValueError(f"{len(header)} columns where there should be 8")
            return rows.dreamlip_csv
    except ValueError as error:
        raise DataError(f"{where} is no {format}: {error}") from error
    assert columns is not None, "as the config makes sure"
    columns.check(header, where)

    def make(number: int, values: Sequence[str]) -> CaptionRow:
        if len(values) != len(header):
            raise ValueError(f"{len(values)} columns where there should be {len(header)}")
        return rows.plain(number, dict(zip(header, values, strict=True)), columns)

    return make


def _jsonl(file: BinaryIO, where: str, columns: ColumnMap | None) -> Iterator[Place]:
    lines = ((index, line) for index, line in enumerate(file, start=1) if line.strip())
    first = list(itertools.islice(lines, _LOOKED_AT))
    if columns is not None and (has := _keys_in(line for _, line in first)):
        columns.check(has, where)
    for index, line in itertools.chain(first, lines):
        place = f"{where} line {index}"
        if columns is None:
            yield place, lambda n, d=line: rows.dreamlip_json(n, _json(d))
        else:
            yield place, lambda n, d=line, c=columns: rows.plain(n, _object(d), c)


def _keys_in(lines: Iterable[bytes]) -> list[str]:
    """Of all objects among them."""
    found: dict[str, None] = {}
    for line in lines:
        with suppress(ValueError):
            found.update(dict.fromkeys(_object(line)))
    return list(found)


def _parquet(store: Store, name: str, columns: ColumnMap) -> Iterator[Place]:
    where = f"{store.uri}/{name}"
    with (
        _seekable(store, name) as opened,
        pyarrow.parquet.ParquetFile(opened, buffer_size=_COPY_BYTES, pre_buffer=False) as file,
    ):
        columns.check(file.schema_arrow.names, where)
        wanted = sorted(set(columns.columns.values()))
        index = itertools.count()
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
            for values in batch.to_pylist():
                place = f"{where} row {next(index)}"
                yield place, lambda n, v=values: rows.plain(n, v, columns)


@contextmanager
def _seekable(store: Store, name: str) -> Iterator[BinaryIO]:
    """The file, of one that is elsewhere a copy without a name, which goes with the process.

    Raises: ConfigError if there is no room for that.
    """
    with store.open(name) as source:
        if isinstance(store, FolderStore):
            yield source
            return
        with tempfile.TemporaryFile() as copy:
            try:
                shutil.copyfileobj(source, copy, _COPY_BYTES)
                copy.seek(0)
            except OSError as error:
                raise ConfigError(
                    f"cannot copy {store.uri}/{name} to {tempfile.gettempdir()}: "
                    f"{error.strerror or error}; make room there"
                ) from error
            yield copy  # type: ignore[misc]


def _json(data: bytes) -> Any:
    """Raises: ValueError."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise ValueError(f"its JSON does not parse: {error}") from error


def _object(data: bytes) -> Mapping[str, Any]:
    found = _json(data)
    if not isinstance(found, Mapping):
        raise ValueError("is no JSON object")
    return found


def _checked(values: Sequence[str]) -> Sequence[str]:
    """Raises: ValueError for bytes that are no UTF-8."""
    for value in values:
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("it is no UTF-8") from None
    return values


def _raises(reason: str) -> Callable[[int], CaptionRow]:
    def make(number: int) -> CaptionRow:
        raise ValueError(reason)

    return make
