"""The files of a published benchmark: found at any depth, read, and missed in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from lotlip.data.store import Store, Version
from lotlip.errors import DataError

_READERS = 16
_NAMED = 3
"""Missing files that an error names."""


class Files:
    """What lies below the address that a user gave for a benchmark.

    Archives unpack into folders of other names on other machines, so a file is found by the end of
    its path: `photos/sa_1.jpg` also as `dci/densely_captioned_images/photos/sa_1.jpg`.
    """

    def __init__(self, store: Store, benchmark: str, source: str) -> None:
        """`source` tells where the files come from."""
        self.store = store
        self._benchmark, self._source = benchmark, source

    @cached_property
    def versions(self) -> Mapping[str, Version]:
        """All that lies there. Raises: DataError if there is nothing."""
        found = self.store.versions()
        if not found:
            raise self.wrong(f"{self.store.uri} is empty or does not exist")
        return found

    def wrong(self, what: str) -> DataError:
        """The error that tells `what`, with the benchmark and where to get it."""
        return DataError(f"benchmark {self._benchmark}: {what}; get it from {self._source}")

    def find(self, name: str) -> str:
        """The place of a file. Raises: DataError if it is missing, or there are several."""
        return self.find_all([name], "file")[0]

    def find_all(self, names: Sequence[str], what: str) -> list[str]:
        """The places of files, in the order of their names. Raises: DataError, see `find`."""
        found = [self._place(name) for name in names]
        missing = [name for name, place in zip(names, found, strict=True) if not place]
        if missing:
            shown = ", ".join(missing[:_NAMED])
            more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
            raise self.wrong(
                f"{self.store.uri} lacks {len(missing):,} of {len(names):,} {what}s: {shown}{more}"
            )
        return [place for place in found if place]

    def has(self, name: str) -> bool:
        """Whether there is a file whose path ends so."""
        return bool(self._place(name))

    def text(self, place: str) -> str:
        """A file in UTF-8, with or without a byte order mark. Raises: DataError."""
        try:
            return self.store.read(place).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.wrong(f"{self.store.uri}/{place} is no text in UTF-8: {error}") from error

    def json(self, place: str) -> Any:
        """Raises: DataError, also for a file that was cut."""
        return self._parsed(self.text(place), place)

    def jsons(self, places: Sequence[str]) -> list[Any]:
        """Of many files, in their order. Raises: DataError, see `json`."""
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(self.json, places))

    def json_lines(self, place: str) -> Iterator[Any]:
        """Raises: DataError, also for a line that was cut."""
        for number, line in enumerate(self.text(place).splitlines(), 1):
            if line.strip():
                yield self._parsed(line, f"{place}, line {number}")

    def field(self, record: Any, name: str, place: str) -> Any:
        """Raises: DataError if the record has no such field."""
        if not isinstance(record, dict) or name not in record:
            raise self.wrong(f"{self.store.uri}/{place} has an entry without {name!r}")
        return record[name]

    def _parsed(self, text: str, place: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise self.wrong(
                f"{self.store.uri}/{place} is damaged or cut: {error.msg} in line {error.lineno}"
            ) from error

    def _place(self, name: str) -> str:
        wanted = tuple(name.strip("/").split("/"))
        places = [
            place
            for place in self._by_last.get(wanted[-1], ())
            if tuple(place.split("/"))[-len(wanted) :] == wanted
        ]
        highest = min((place.count("/") for place in places), default=0)
        places = [place for place in places if place.count("/") == highest]
        if len(places) > 1:
            raise self.wrong(
                f"{self.store.uri} has {name} more than once: {places[0]} and {places[1]}; "
                "give a folder that holds one of them"
            )
        return places[0] if places else ""

    @cached_property
    def _by_last(self) -> Mapping[str, list[str]]:
        by_last: dict[str, list[str]] = {}
        for place in self.versions:
            by_last.setdefault(place.rpartition("/")[2], []).append(place)
        return by_last
