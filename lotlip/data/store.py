"""Where shards, checkpoints and models lie: a folder of named objects, local or in S3.

The science reads and writes through this small protocol only; `lotlip_platform.storage` adds S3.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from lotlip.errors import DataError

_PART = ".part-"  # files that are being written, or whose writer was killed


class Store(Protocol):
    """A flat namespace of objects; names are relative, with `/` between their parts."""

    @property
    def uri(self) -> str:
        """The address of the store, without a trailing slash."""
        ...

    def open(self, name: str, *, num_bytes: int | None = None, start: int = 0) -> BinaryIO:
        """Open an object for sequential reading from byte `start` on.

        `num_bytes` is the size the reader relies on. Raises: DataError if the object is missing
        or its size differs.
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

    def exists(self, name: str) -> bool: ...

    def delete(self, name: str) -> None:
        """Remove an object; a missing one is fine."""
        ...

    def at(self, folder: str) -> Store:
        """The store of a folder inside this one."""
        ...


class FolderStore:
    """A `Store` in a local folder. Writes go to a temporary file first and are then renamed."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()

    @property
    def uri(self) -> str:
        return str(self.root)

    def open(self, name: str, *, num_bytes: int | None = None, start: int = 0) -> BinaryIO:
        path = self._path(name)
        try:
            file = path.open("rb")
        except OSError as error:
            raise _unreadable(path, error) from error
        found = os.fstat(file.fileno()).st_size
        if num_bytes is not None and found != num_bytes:
            file.close()
            raise DataError(
                f"{path} has {found} bytes, expected {num_bytes}: was it changed or cut? "
                "Copy it again"
            )
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
        names = (
            path.relative_to(self.root).as_posix()
            for path in self.root.rglob("*")
            if path.is_file() and not path.name.startswith(_PART)
        )
        return sorted(name for name in names if name.startswith(prefix))

    def exists(self, name: str) -> bool:
        path = self._path(name)
        try:
            return path.is_file()
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
            raise DataError(
                f"cannot write {path}: {reason}; free some space or choose another place"
            ) from error
        finally:
            if temporary:
                Path(temporary).unlink(missing_ok=True)


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} does not exist")
    return DataError(f"cannot read {path}: {error.strerror or error}")
