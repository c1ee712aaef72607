"""What a published benchmark asks: pairs of images and texts, or images of classes.

Shape suffixes: N images, T texts.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from lotlip.data.store import Store

T = TypeVar("T")
_READERS = 16
"""Files that are fetched at a time: from S3 each one takes its time."""


class Images(Protocol):
    """The images of a benchmark, or some of them."""

    @property
    def where(self) -> str:
        """The address below which they lie."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """What errors call them, [N]."""
        ...

    @property
    def versions(self) -> Sequence[str]:
        """What tells the contents of each, old and new, apart, [N]."""
        ...

    def read(self) -> list[bytes]:
        """All of them, as files hold them: [N]. Raises: DataError."""
        ...

    def part(self, start: int, stop: int) -> Images:
        """Some of them."""
        ...


@dataclass(frozen=True)
class StoredImages:
    """Images that are files."""

    store: Store
    names: Sequence[str]
    versions: Sequence[str]

    @property
    def where(self) -> str:
        return self.store.uri

    def read(self) -> list[bytes]:
        return read_all(self.store.read, self.names)

    def part(self, start: int, stop: int) -> StoredImages:
        return StoredImages(self.store, self.names[start:stop], self.versions[start:stop])


@dataclass(frozen=True)
class PixelImages:
    """Images that lie in one array, uint8 [N, H, W, 3]."""

    name: str
    pixels_NHWC: np.ndarray
    first: int = 0
    """The place of its first image in the whole."""
    where: str = ""

    @property
    def names(self) -> Sequence[str]:
        places = range(self.first, self.first + len(self.pixels_NHWC))
        return [f"{self.name}, image {place}" for place in places]

    @property
    def versions(self) -> Sequence[str]:
        return [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in self.pixels_NHWC]

    def read(self) -> list[bytes]:
        # Without compression, whose output differs by version: the same pixels, the same bytes.
        files = [io.BytesIO() for _ in self.pixels_NHWC]
        for pixels, file in zip(self.pixels_NHWC, files, strict=True):
            Image.fromarray(pixels).save(file, "BMP")
        return [file.getvalue() for file in files]

    def part(self, start: int, stop: int) -> PixelImages:
        return replace(self, pixels_NHWC=self.pixels_NHWC[start:stop], first=self.first + start)


@dataclass(frozen=True)
class Pairs:
    """Images, and texts that describe them."""

    images: Images
    texts: Sequence[str]
    """As the protocol has them, [T]."""
    image_of_T: Sequence[int]
    """Which image each text was written for."""
    names: Sequence[str]
    """Of the images, as the benchmark has them, wherever they lie: [N]."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of texts and of the images' names: equal where the same was asked."""
        return digest_of([*self.names], [*self.texts], [*self.image_of_T])


@dataclass(frozen=True)
class Labelled:
    """Images of classes, and the prompts that name them."""

    images: Images
    labels: Sequence[int]
    """Which class each image is of, [N]."""
    prompts: Sequence[Sequence[str]]
    """Of each class, equally many."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of prompts, labels and the images' file names."""
        names = [name.rpartition("/")[2] for name in self.images.names]
        return digest_of(names, [*self.labels], [list(p) for p in self.prompts])


def read_all(read: Callable[[str], T], places: Sequence[str]) -> list[T]:
    """What a function reads of each place, in their order."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, places))


def digest_of(*parts: object) -> str:
    """SHA-256 of what can be written as JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
