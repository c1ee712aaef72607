"""Sequential reading of one S3 object that survives broken connections.

The bytes delivered are exactly the object's, or reading fails: a body that breaks, stalls or ends
early is resumed with a ranged request that is tied to the ETag seen first, and the end is only
believed at the object's size.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lotlip.data.store import wrong_size
from lotlip.errors import DataError

MAX_FRUITLESS_ATTEMPTS = 8
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
_LOOKS = 4
"""At a size that isn't the right one, before it is believed: one answer may be wrong."""
READ_BYTES = 64 * 1024
"""Bytes asked of the network at once: what a break can waste."""

T = TypeVar("T")


class Interrupted(Exception):
    """A fault that another attempt may mend; its text is one line."""


class ChangedError(DataError):
    """The object is another one than that which was looked up."""


@dataclass(frozen=True)
class ObjectVersion:
    """What identifies the bytes of an object."""

    num_bytes: int
    etag: str


class Body(Protocol):
    """The bytes of one response. Both methods raise nothing but `Interrupted`."""

    def read(self, num_bytes: int) -> bytes:
        """At most `num_bytes`; empty at the end of the response."""
        ...

    def close(self) -> None: ...


class ObjectSource(Protocol):
    """How the reader asks for an object.

    Both methods raise `Interrupted`, or DataError where no retry can help.
    """

    @property
    def uri(self) -> str: ...

    def stat(self) -> ObjectVersion: ...

    def open_at(self, position: int, version: ObjectVersion) -> Body:
        """The bytes of exactly this version from `position` to its end."""
        ...


class ResumingReader(io.RawIOBase):
    """A raw stream over an `ObjectSource`. Not for use by several threads at once."""

    def __init__(
        self,
        source: ObjectSource,
        *,
        num_bytes: int | None = None,
        etag: str = "",
        start: int = 0,
        on_fault: Callable[[], None] = lambda: None,
    ) -> None:
        """`num_bytes` and `etag` are those the caller relies on, `start` the first byte it wants;
        `on_fault` is called for each fault that another attempt may mend.

        Raises: DataError if the size differs or the object cannot be reached. That the ETag differs
        is noticed at the first byte.
        """
        super().__init__()
        self._source, self._num_bytes = source, num_bytes
        self._position = start
        self._on_fault = on_fault
        self._fruitless = 0
        self._body: Body | None = None
        self._is_told = num_bytes is not None and bool(etag)
        """Whether the version is the caller's; each request is tied to it."""
        self._has_begun = False
        if num_bytes is not None and etag:
            self._version = ObjectVersion(num_bytes, etag)
        else:
            self._version = self._looked_up()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Raises: DataError once the object cannot be read on."""
        if self.closed:
            raise ValueError("read of a closed object")
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), READ_BYTES, self._version.num_bytes - self._position)
        if wanted <= 0:
            return 0
        chunk = self._insist(lambda: self._read_chunk(wanted))
        view[: len(chunk)] = chunk
        self._position += len(chunk)
        if self._position == self._version.num_bytes:
            self._check_end()
        return len(chunk)

    def close(self) -> None:
        if not self.closed:
            self._drop_body()
        super().close()

    def _read_chunk(self, wanted: int) -> bytes:
        if self._body is None:
            if self._fruitless and not self._has_begun and not self._is_told:
                self._version = self._source.stat()  # what it told before may have been wrong
            try:
                self._body = self._source.open_at(self._position, self._version)
            except ChangedError as error:
                if self._is_told or self._has_begun:
                    raise
                # Rewritten since it was looked up: any version will do.
                raise Interrupted(str(error)) from error
        chunk = self._body.read(wanted)
        if not chunk:
            raise Interrupted("the response ended early")
        self._has_begun = True
        return chunk

    def _looked_up(self) -> ObjectVersion:
        """Raises: DataError if the object's size isn't that which the caller relies on."""
        version = self._insist(self._source.stat)
        for _ in range(_LOOKS - 1):
            if self._num_bytes in (None, version.num_bytes):
                break
            version = self._insist(self._source.stat)
        if self._num_bytes is not None and self._num_bytes != version.num_bytes:
            raise DataError(wrong_size(self._source.uri, version.num_bytes, self._num_bytes))
        return version

    def _check_end(self) -> None:
        try:
            surplus = self._body.read(1) if self._body else b""
        except Interrupted:
            surplus = b""  # Everything was delivered before this fault.
        self._drop_body()
        if surplus:
            raise DataError(
                f"{self._source.uri} goes on after its {self._version.num_bytes} bytes: "
                "the S3 server contradicts itself; copy the object again"
            )

    def _insist(self, attempt: Callable[[], T]) -> T:
        while True:
            try:
                result = attempt()
            except Interrupted as fault:
                self._drop_body()
                self._on_fault()
                self._fruitless += 1
                if self._fruitless >= MAX_FRUITLESS_ATTEMPTS:
                    raise DataError(
                        f"cannot read {self._source.uri} on from byte {self._position}: {fault} "
                        f"({MAX_FRUITLESS_ATTEMPTS} attempts); check the S3 server and the network"
                    ) from fault
                pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._fruitless - 1))
                time.sleep(pause_s * random.uniform(0.5, 1.0))
            else:
                self._fruitless = 0
                return result

    def _drop_body(self) -> None:
        body, self._body = getattr(self, "_body", None), None
        if body is not None:
            body.close()
