"""The local journal of a run: all that is to be in MLflow, written here first.

HOME/journal/ID/journal.jsonl       one entry a line, only ever appended to
HOME/journal/ID/files/...           contents of artifacts, by checksum
HOME/journal/ID/sent.json           how far it has come, kept by whoever sends it
HOME/journal/ID/owner.lock          locked by the training process while it lives
HOME/journal/ID/sender.lock         locked by whoever sends it

An entry has a `kind`, of those that `sender` lists, and the `time_ms` of its making. It is sent
with that time, whenever that may be, and however often it is tried.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lotlip.errors import TrackingError
from lotlip_platform.local_services import home

Entry = dict[str, Any]
_OWNED_S = 2.0  # others look whether somebody has it, which takes a moment


@dataclass
class Sent:
    """How far a journal has come."""

    offset: int = 0
    """Bytes of the journal that are through."""
    deferred: list[int] = field(default_factory=list)
    """Where entries before that begin that the server doesn't take at present."""
    uri: str = ""
    """Of the server."""
    run_id: str = ""
    """The MLflow run, once there is one."""
    life: int = 0
    """Number of the training process whose entries these are."""
    model_uri: str = ""
    """`models:/NAME/VERSION`, once the model is registered."""
    num_refused: int = 0
    refused: list[str] = field(default_factory=list)
    """Why the server took no such entry, one line each; the first few."""
    trouble: str = ""
    """Why sending doesn't go on at present; empty if it does."""
    time_ms: int = 0
    """When this was written."""


class Journal:
    """One run's journal. Several processes may append to it, one sends it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = folder / "journal.jsonl"

    @property
    def exists(self) -> bool:
        return self._lines.exists()

    def append(self, kind: str, **content: Any) -> None:
        """Add an entry; `time_ms`, if it isn't now, is among `content`. Raises: OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = {"kind": kind, "time_ms": int(time.time() * 1000), **content}
        # A line that a killed process or a full disk cut short is ended first.
        start = "" if self._ends_with_a_line() else "\n"
        line = f"{start}{json.dumps(entry)}\n".encode()
        with self._lines.open("ab", buffering=0) as file:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._lines))

    def keep(self, content: bytes) -> str:
        """Keep the content of an artifact; its name for `kept`. Raises: OSError."""
        name = hashlib.sha256(content).hexdigest()
        path = self.kept(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_wholly(path, content)
        return name

    def kept(self, name: str) -> Path:
        return self.folder / "files" / name

    def read(self, offset: int) -> Iterator[tuple[Entry, int]]:
        """Entries behind a place in bytes, each with the place after it."""
        with contextlib.suppress(FileNotFoundError), self._lines.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # is being written
                offset += len(line)
                with contextlib.suppress(ValueError):  # cut short
                    yield json.loads(line), offset

    def open_life(self) -> int:
        """The last training process, if its end isn't noted; else 0."""
        life = 0
        for entry, _ in self.read(0):
            if entry["kind"] == "open":
                life = entry["life"]
            elif entry["kind"] == "end" and entry["life"] == life:
                life = 0
        return life

    def end_killed_life(self) -> None:
        """Note the end of a training process that was killed together with its sender.

        Raises: BlockingIOError if one is at work; OSError.
        """
        with self._owned(wait_s=0):
            if life := self.open_life():
                last = max(entry["time_ms"] for entry, _ in self.read(0))
                self.append("end", status="KILLED", life=life, time_ms=last)

    def sent(self) -> Sent:
        try:
            return Sent(**json.loads((self.folder / "sent.json").read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return Sent()  # what is sent a second time is known by its time

    def write_sent(self, sent: Sent) -> None:
        """Raises: OSError."""
        sent.time_ms = int(time.time() * 1000)
        _write_wholly(self.folder / "sent.json", json.dumps(asdict(sent)).encode())

    @property
    def is_sent(self) -> bool:
        """Whether all there is has come through."""
        sent = self.sent()
        return not sent.deferred and next(self.read(sent.offset), None) is None

    @property
    def num_bytes(self) -> int:
        return self._lines.stat().st_size if self.exists else 0

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Held by the training process; let go by its death, too.

        Raises: TrackingError if another process has it, or the disk doesn't take it.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._owned(wait_s=_OWNED_S))
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    reason = "another process on this machine is at work on this run: stop it first"
                else:
                    reason = error.strerror
                raise TrackingError(f"{self.folder}: {reason}") from error
            yield

    @property
    def is_owned(self) -> bool:
        if not (self.folder / "owner.lock").exists():
            return False
        try:
            with self._owned(wait_s=0):
                return False
        except BlockingIOError:
            return True

    def _owned(self, *, wait_s: float) -> AbstractContextManager[None]:
        return _locked(self.folder / "owner.lock", wait_s=wait_s)

    def sending(self) -> AbstractContextManager[None]:
        """The right to send. Raises: BlockingIOError if another has it; OSError."""
        return _locked(self.folder / "sender.lock", wait_s=0)

    def remove_if_sent(self) -> bool:
        """Remove it, if nothing is left to send and no training process has it."""
        try:
            with self._owned(wait_s=0):
                if not self.is_sent:
                    return False
                # First: a place in a journal that is gone would be past the end of the next.
                (self.folder / "sent.json").unlink(missing_ok=True)
                shutil.rmtree(self.folder, ignore_errors=True)
        except BlockingIOError:
            return False
        return True

    def _ends_with_a_line(self) -> bool:
        try:
            with self._lines.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read(1) == b"\n"
        except OSError:  # there is none yet, or it is empty
            return True


def journal(name: str) -> Journal:
    """The journal of this name."""
    return Journal(home() / "journal" / name)


def journals() -> list[Journal]:
    """All that are kept on this machine."""
    found = (Journal(folder) for folder in sorted((home() / "journal").glob("*/")))
    return [one for one in found if one.exists]


def family(parent: Journal) -> list[Journal]:
    """A journal, and those of the runs below its run, whose names begin with its own and a dot."""
    folders = sorted(parent.folder.parent.glob(f"{parent.folder.name}.*/"))
    return [one for one in (parent, *map(Journal, folders)) if one.exists]


@contextmanager
def _locked(path: Path, *, wait_s: float) -> Iterator[None]:
    """Raises: BlockingIOError if another has it all that time; OSError."""
    deadline = time.monotonic() + wait_s
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
            else:
                # The file may have been removed in between: then this is a lock on nothing.
                if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    yield
                    return
        time.sleep(0.05)


def _write_wholly(path: Path, content: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content)
    new.replace(path)
