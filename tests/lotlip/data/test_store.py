from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from lotlip.data.store import FolderStore
from lotlip.errors import DataError


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_what_is_written_is_read_back_replaced_listed_and_deleted(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "new")
    store.write("a/b.bin", b"old")
    store.write("a/b.bin", b"newer")
    store.at("a").write("c.bin", b"")
    (tmp_path / "local").write_bytes(b"x" * 300_000)
    store.write_file("large.bin", tmp_path / "local")
    assert store.read("a/b.bin") == b"newer"
    assert store.read("a/c.bin") == b""
    assert store.read("large.bin") == b"x" * 300_000
    assert store.list() == ["a/b.bin", "a/c.bin", "large.bin"]
    assert store.list("a/b") == ["a/b.bin"]
    assert store.exists("a/b.bin")
    assert not store.exists("a")
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    assert not store.exists("a/b.bin")
    assert files(tmp_path / "new") == ["a/c.bin", "large.bin"]


def test_a_store_that_is_not_there_has_no_objects(tmp_path: Path) -> None:
    assert FolderStore(tmp_path / "nowhere").list() == []
    assert not FolderStore(tmp_path / "nowhere").exists("x")


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    FolderStore(tmp_path).write("x", b"1")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/..", "/etc/hostname"])
def test_a_name_that_leads_out_of_the_store_is_refused(tmp_path: Path, name: str) -> None:
    store = FolderStore(tmp_path / "store")
    for use in (store.open, store.read, store.exists, store.delete, store.at):
        with pytest.raises(DataError, match="is not a name inside"):
            use(name)
    with pytest.raises(DataError, match="is not a name inside"):
        store.write(name, b"1")
    assert files(tmp_path) == []


def test_the_size_that_is_relied_on_is_checked(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write("x", b"12345")
    with store.open("x", num_bytes=5) as file:
        assert file.read() == b"12345"
    with pytest.raises(DataError, match=r"x has 5 bytes, expected 6"):
        store.open("x", num_bytes=6)
    store.write("empty", b"")
    with pytest.raises(DataError, match=r"empty has 0 bytes, expected 1"):
        store.open("empty", num_bytes=1)
    with pytest.raises(DataError, match=r"x has 5 bytes, expected 0"):
        store.open("x", num_bytes=0)


def test_a_missing_object_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path}/x does not exist$"):
        FolderStore(tmp_path).read("x")


def test_a_folder_is_not_an_object(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"cannot read .*folder: Is a directory"):
        FolderStore(tmp_path).open("folder")
    with pytest.raises(DataError, match=r"cannot delete .*folder: "):
        FolderStore(tmp_path).delete("folder")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyError("x")])
def test_a_write_that_breaks_leaves_the_old_object_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = FolderStore(tmp_path)
    store.write("x", b"old")
    content_when_it_broke = []

    def broken(handle: int) -> None:
        content_when_it_broke.append((tmp_path / "x").read_bytes())
        assert len(files(tmp_path)) == 2
        assert store.list() == ["x"]
        raise error

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(DataError if isinstance(error, OSError) else KeyError):
        store.write("x", b"new")
    assert content_when_it_broke == [b"old"]
    assert store.read("x") == b"old"
    assert files(tmp_path) == ["x"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write("x", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(DataError) as caught:
            store.write("x", b"1" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value) == (
        f"cannot write {tmp_path}/x: File too large; free some space or choose another place"
    )
    assert store.read("x") == b"old"
    assert files(tmp_path) == ["x"]


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    below_a_file = FolderStore(tmp_path / "file" / "folder")
    with pytest.raises(
        DataError, match=r"cannot write .*/folder/x: Not a directory; choose another"
    ):
        below_a_file.write("x", b"1")
    with pytest.raises(DataError, match=r"cannot read .*: Not a directory"):
        below_a_file.open("x")
    with pytest.raises(DataError, match=r"cannot delete .*: Not a directory"):
        below_a_file.delete("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"cannot write .*/folder: Is a directory"):
        FolderStore(tmp_path).write("folder", b"1")
    assert files(tmp_path) == ["file"]


def test_a_name_that_the_file_system_refuses_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*: File name too long"):
        FolderStore(tmp_path).exists("x" * 300)


def test_a_local_file_that_is_missing_is_one_clear_line(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        store.write_file("x", tmp_path / "nowhere")
    assert files(tmp_path) == []


def test_what_a_killed_writer_left_is_no_object(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write("a/x", b"1")
    (tmp_path / "a" / ".part-abc").write_bytes(b"half")
    assert store.list() == ["a/x"]
