"""Where shards, checkpoints and models lie: a folder of named objects, local or in S3.

The science reads and writes through this small protocol only; `lotlip_platform.storage` adds S3.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from lotlip.errors import DataError

_PART = ".part-"  # files that are being written, or whose writer was killed


class Version(NamedTuple):
    """What tells the contents of an object, old and new, apart."""

    num_bytes: int
    tag: str
    """An ETag in S3, a time in a folder."""


class Store(Protocol):
    """A flat namespace of objects; names are relative, with `/` between their parts."""

    @property
    def uri(self) -> str:
        """The address of the store, without a trailing slash."""
        ...

    @property
    def num_faults(self) -> int:
        """Times so far, in this process, that a call failed and was tried again."""
        ...

    def open(
        self, name: str, *, num_bytes: int | None = None, tag: str = "", start: int = 0
    ) -> BinaryIO:
        """Open an object for sequential reading from byte `start` on.

        `num_bytes` and `tag` are the size and the version that the reader relies on. Raises:
        DataError if the object is missing or another one.
        """
        ...

    def read(self, name: str) -> bytes:
        """The whole object. Raises: DataError."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Create or replace an object, wholly or not at all. Raises: DataError."""
        ...

    def write_file(self, name: str, path: Path) -> None:
        """Like `write`, from a local file of any size."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """Sorted names that start with `prefix`."""
        ...

    def versions(self, prefix: str = "") -> dict[str, Version]:
        """What lies there now, by name."""
        ...

    def version(self, name: str) -> Version:
        """Of one object, however many there are. Raises: DataError."""
        ...

    def exists(self, name: str) -> bool: ...

    def age_s(self, name: str) -> float:
        """Seconds since an object was written, by the store's own clock. Raises: DataError."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; a missing one is fine."""
        ...

    def at(self, folder: str) -> Store:
        """The store of a folder inside this one."""
        ...


class FolderStore:
    """A `Store` in a local folder. Writes go to a temporary file first and are then renamed."""

    num_faults = 0

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()

    @property
    def uri(self) -> str:
        return str(self.root)

    def open(
        self, name: str, *, num_bytes: int | None = None, tag: str = "", start: int = 0
    ) -> BinaryIO:
        path = self._path(name)
        try:
            file = path.open("rb")
        except OSError as error:
            raise _unreadable(path, error) from error
        found = _version(os.fstat(file.fileno()))
        wrong = ""
        if num_bytes is not None and found.num_bytes != num_bytes:
            wrong = wrong_size(str(path), found.num_bytes, num_bytes)
        elif tag and found.tag != tag:
            wrong = f"{path} was changed while it was in use: start again"
        if wrong:
            file.close()
            raise DataError(wrong)
        file.seek(start)
        return file

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            try:
                return file.read()
            except OSError as error:
                raise _unreadable(self._path(name), error) from error

    def write(self, name: str, data: bytes) -> None:
        self._replace(name, lambda file: file.write(data))

    def write_file(self, name: str, path: Path) -> None:
        with FolderStore(path.parent).open(path.name) as source:
            self._replace(name, lambda file: shutil.copyfileobj(source, file))

    def list(self, prefix: str = "") -> list[str]:
        if not self.root.is_dir():
            return []
        seen: set[str] = set()
        names: list[str] = []
        for folder, folders, files in os.walk(self.root, followlinks=True):
            seen.add(os.path.realpath(folder))
            # A link may lead to a folder that it lies in.
            folders[:] = [
                f for f in folders if os.path.realpath(os.path.join(folder, f)) not in seen
            ]
            base = Path(folder).relative_to(self.root).as_posix()
            start = "" if base == "." else f"{base}/"
            names += [f"{start}{file}" for file in files if not file.startswith(_PART)]
        return sorted(name for name in names if name.startswith(prefix))

    def versions(self, prefix: str = "") -> dict[str, Version]:
        found = {}
        for name in self.list(prefix):
            with contextlib.suppress(FileNotFoundError):  # has just been deleted
                found[name] = _version(self._path(name).stat())
        return found

    def version(self, name: str) -> Version:
        path = self._path(name)
        try:
            return _version(path.stat())
        except OSError as error:
            raise _unreadable(path, error) from error

    def exists(self, name: str) -> bool:
        path = self._path(name)
        try:
            return path.is_file()
        except OSError as error:
            raise _unreadable(path, error) from error

    def age_s(self, name: str) -> float:
        path = self._path(name)
        try:
            return time.time() - path.stat().st_mtime
        except OSError as error:
            raise _unreadable(path, error) from error

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"cannot delete {path}: {error.strerror or error}") from error

    def at(self, folder: str) -> FolderStore:
        return FolderStore(self._path(folder))

    def _path(self, name: str) -> Path:
        path = self.root / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise DataError(f"{name!r} is not a name inside {self.root}")
        return path

    def _replace(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        path = self._path(name)
        temporary: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_PART)
            with os.fdopen(handle, "wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            temporary = None
        except OSError as error:
            reason = error.strerror or str(error)
            advice = (
                "free some space or "
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
                else ""
            )
            raise DataError(
                f"cannot write {path}: {reason}; {advice}choose another place"
            ) from error
        finally:
            if temporary:
                Path(temporary).unlink(missing_ok=True)


def wrong_size(where: str, found: int, expected: int) -> str:
    """What to say of an object that is not as large as its reader relies on."""
    return f"{where} has {found} bytes, expected {expected}: was it changed or cut? Copy it again"


def _version(stat: os.stat_result) -> Version:
    return Version(stat.st_size, str(stat.st_mtime_ns))


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} does not exist")
    return DataError(f"cannot read {path}: {error.strerror or error}")
