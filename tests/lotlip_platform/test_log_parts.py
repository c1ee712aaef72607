import time
from pathlib import Path

import pytest

from lotlip.data.store import FolderStore
from lotlip.errors import DataError
from lotlip_platform import log_parts
from lotlip_platform.log_parts import LogReader, LogWriter, sources

QUICKLY_S = 0.05


def all_lines(store: FolderStore, source: str = "driver") -> list[str]:
    return list(LogReader(store, source).lines(is_over=True))


def test_what_is_written_is_read_line_by_line_and_the_last_one_without_an_end(
    tmp_path: Path,
) -> None:
    store = FolderStore(tmp_path)
    log = LogWriter(store, "driver", QUICKLY_S)
    log.write(b"one\ntw")
    log.write("o\nüber\nlast".encode())
    log.close()
    assert all_lines(store) == ["one", "two", "über", "last"]


def test_a_reader_goes_on_where_it_stood_while_the_log_grows(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    log, reader = LogWriter(store, "driver", QUICKLY_S), LogReader(store, "driver")
    assert list(reader.lines()) == []
    assert reader.is_empty
    log.write(b"first\nhalf")
    deadline = time.monotonic() + 10
    seen: list[str] = []
    while not seen and time.monotonic() < deadline:
        seen += reader.lines()
    assert seen == ["first"]
    log.write(b" a line\nand the end")
    log.close()
    assert list(reader.lines(is_over=True)) == ["half a line", "and the end"]
    assert not reader.is_empty


def test_a_long_log_is_in_parts_of_which_only_the_last_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_parts, "PART_BYTES", 1000)

    class Counting(FolderStore):
        written = 0

        def write(self, name: str, data: bytes) -> None:
            self.written += len(data)
            super().write(name, data)

    store = Counting(tmp_path)
    log = LogWriter(store, "driver", QUICKLY_S)
    lines = [f"line {number} {'x' * 50}" for number in range(200)]
    for line in lines:
        log.write(f"{line}\n".encode())
        time.sleep(0.002)
    log.close()
    assert all_lines(store) == lines
    parts = store.list("driver/")
    total = sum(len(f"{line}\n") for line in lines)
    assert total / 1100 < len(parts) < total / 900
    # Each part may be written at its end, and as often as it was flushed before.
    assert store.written < 6 * total


def test_what_a_store_that_is_away_does_not_take_it_gets_later(tmp_path: Path) -> None:
    class Away(FolderStore):
        is_away = True

        def write(self, name: str, data: bytes) -> None:
            if self.is_away:
                raise DataError("away")
            super().write(name, data)

    store = Away(tmp_path)
    log = LogWriter(store, "driver", QUICKLY_S)
    log.write(b"during\n")
    time.sleep(0.2)
    assert store.list() == []
    store.is_away = False
    log.write(b"after\n")
    log.close()
    assert all_lines(store) == ["during", "after"]


def test_the_end_of_a_log_waits_for_a_store_that_comes_back(tmp_path: Path) -> None:
    class Away(FolderStore):
        back_at = time.monotonic() + 0.5

        def write(self, name: str, data: bytes) -> None:
            if time.monotonic() < self.back_at:
                raise DataError("away")
            super().write(name, data)

    log = LogWriter(Away(tmp_path), "driver", QUICKLY_S)
    log.write(b"Traceback\n")
    log.close(patience_s=30)
    assert all_lines(FolderStore(tmp_path)) == ["Traceback"]


def test_a_store_that_stays_away_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_parts, "PART_BYTES", 10)
    monkeypatch.setattr(log_parts, "_MOST_PARTS_WAITING", 3)
    store = FolderStore(tmp_path)
    log = LogWriter(store, "driver", flush_s=60)
    for number in range(10):
        log.write(f"0123456{number}\n".encode() * 2)
    log.close()
    lines = all_lines(store)
    assert lines[-1] == "01234569"
    assert lines[0].endswith("bytes lost]")
    assert len(lines) < 10


def test_each_process_has_parts_of_its_own_and_sources_are_apart(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for text, source in (("a", "rank-0001"), ("b", "rank-0001"), ("c", "rank-0011")):
        log = LogWriter(store, source, QUICKLY_S)
        log.write(f"{text}\n".encode())
        log.close()
    assert all_lines(store, "rank-0001") == ["a", "b"]
    assert all_lines(store, "rank-0011") == ["c"]
    assert sources(store) == ["rank-0001", "rank-0011"]
