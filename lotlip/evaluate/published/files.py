"""The files of a published benchmark: found at any depth, read, and missed in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lotlip.data.store import Store, Version
from lotlip.errors import DataError
from lotlip.evaluate.published.sets import Pairs, StoredImages, read_all

_LEFT_BY_MACS = re.compile(r"(^|/)(__MACOSX/|\._)")
_NAMED = 3
"""Missing files that an error names."""


class Files:
    """What lies below the address that a user gave for a benchmark.

    Archives unpack into folders of other names on other machines, so a file is found by the end of
    its path: `photos/sa_1.jpg` also as `dci/densely_captioned_images/photos/sa_1.jpg`.
    """

    def __init__(self, store: Store, benchmark: str, source: str, *, partial: bool = False) -> None:
        """`source` tells where files come from; `partial` leaves out images that are missing."""
        self.store, self.partial = store, partial
        self._benchmark, self._source = benchmark, source

    @cached_property
    def versions(self) -> Mapping[str, Version]:
        """All that lies there. Raises: DataError if there is nothing."""
        found = self.store.versions()
        if not found and Path(self.store.uri).is_file():
            raise self.wrong(f"{self.store.uri} is a file: give the folder that holds it, unpacked")
        if not found:
            raise self.wrong(f"{self.store.uri} is empty or does not exist")
        return {place: one for place, one in found.items() if not _LEFT_BY_MACS.search(place)}

    def wrong(self, what: str) -> DataError:
        """The error that tells `what`, with the benchmark and where to get it."""
        return DataError(f"benchmark {self._benchmark}: {what}; get it from {self._source}")

    def empty(self, places: Sequence[str]) -> DataError:
        """The error of files without a byte."""
        return self.wrong(f"{self.store.uri} has {len(places):,} empty files: {places[0]}")

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

    def json(self, place: str, kind: type = dict) -> Any:
        """Raises: DataError, also for a file that was cut, or holds something else."""
        found = self._parsed(self.text(place), place)
        if not isinstance(found, kind):
            what = "object" if kind is dict else "list"
            raise self.wrong(f"{self.store.uri}/{place} holds no JSON {what}")
        return found

    def jsons(self, places: Sequence[str]) -> list[Any]:
        """Of many files, in their order. Raises: DataError, see `json`."""
        return read_all(self.json, places)

    def json_lines(self, place: str) -> Iterator[Any]:
        """Raises: DataError, also for a line that was cut."""
        for number, line in enumerate(self.text(place).split("\n"), 1):
            if line.strip():
                yield self._parsed(line, f"{place}, line {number}")

    def field(self, record: Any, name: str, place: str) -> Any:
        """Raises: DataError if the record has no such field."""
        if not isinstance(record, dict) or name not in record:
            raise self.wrong(f"{self.store.uri}/{place} has an entry without {name!r}")
        return record[name]

    def words(self, record: Any, name: str, place: str) -> str:
        """A field that is a text; null is an empty one. Raises: DataError."""
        found = self.field(record, name, place)
        if found is not None and not isinstance(found, str):
            raise self.wrong(f"{self.store.uri}/{place} has an entry whose {name!r} is no text")
        return found or ""

    def pairs(self, names: Sequence[str], texts: Sequence[str], image_of_T: Sequence[int]) -> Pairs:
        """Images by their names, and texts. Raises: DataError if one is missing, or empty."""
        if self.partial:
            there = [place for place, name in enumerate(names) if self.has(name)]
            number = {old: new for new, old in enumerate(there)}
            kept = [t for t, image in enumerate(image_of_T) if image in number]
            names, texts = [names[i] for i in there], [texts[t] for t in kept]
            image_of_T = [number[image_of_T[t]] for t in kept]
        images = self.images(self.find_all(names, "image"))
        return Pairs(images, texts, image_of_T, names)

    def images(self, places: Sequence[str]) -> StoredImages:
        """Those at known places. Raises: DataError if one is empty."""
        versions = [self.versions[place] for place in places]
        empty = [p for p, one in zip(places, versions, strict=True) if not one.num_bytes]
        if empty:
            raise self.empty(empty)
        told = [f"{one.num_bytes}.{one.tag}" for one in versions]
        return StoredImages(self.store, places, told)

    def _parsed(self, text: str, place: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise self.wrong(
                f"{self.store.uri}/{place} is damaged or cut: {error.msg} in line {error.lineno}"
            ) from error
        except RecursionError as error:
            raise self.wrong(f"{self.store.uri}/{place} is damaged: nested too deeply") from error

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
