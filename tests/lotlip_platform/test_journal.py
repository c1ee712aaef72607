from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lotlip.errors import TrackingError
from lotlip_platform.journal import Journal, Sent, journal, journals


@pytest.fixture
def kept(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def entries(kept: Journal, offset: int = 0) -> list[dict[str, Any]]:
    return [entry for entry, _ in kept.read(offset)]


def kinds(kept: Journal) -> list[str]:
    return [entry["kind"] for entry in entries(kept)]


def test_entries_are_read_as_they_were_written_and_from_any_of_them_on(kept: Journal) -> None:
    assert not kept.exists
    assert entries(kept) == []
    kept.append("metrics", step=1, values={"train/loss": float("inf")})
    kept.append("tags", values={"a": "line\nbreak"}, time_ms=5)
    assert kept.exists
    first, second = kept.read(0)
    assert first[0] | {"time_ms": 0} == {
        "kind": "metrics",
        "time_ms": 0,
        "step": 1,
        "values": {"train/loss": float("inf")},
    }
    assert second[0] == {"kind": "tags", "time_ms": 5, "values": {"a": "line\nbreak"}}
    assert entries(kept, first[1]) == [second[0]]
    assert entries(kept, second[1]) == []


def test_a_line_that_is_being_written_is_not_read_yet(kept: Journal) -> None:
    kept.append("tags", values={})
    lines = kept.folder / "journal.jsonl"
    whole = lines.read_bytes()
    lines.write_bytes(whole + b'{"kind": "met')
    assert kinds(kept) == ["tags"]


def test_a_line_that_was_cut_short_costs_no_other(kept: Journal) -> None:
    kept.append("tags", values={})
    with (kept.folder / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "met')
    kept.append("end", status="KILLED", life=1)
    assert kinds(kept) == ["tags", "end"]


def test_the_content_of_files_is_kept_once(kept: Journal) -> None:
    assert kept.keep(b"png") == kept.keep(b"png")
    assert kept.kept(kept.keep(b"png")).read_bytes() == b"png"
    assert len(list((kept.folder / "files").iterdir())) == 1


def test_what_was_sent_is_remembered_and_a_damaged_memory_begins_anew(kept: Journal) -> None:
    kept.append("tags", values={})
    assert kept.sent() == Sent()
    assert not kept.is_sent
    ((_, offset),) = kept.read(0)
    kept.write_sent(Sent(offset=offset, run_id="1"))
    assert kept.is_sent
    assert kept.sent().run_id == "1"
    (kept.folder / "sent.json").write_bytes(b'{"offset"')
    assert kept.sent() == Sent()


def test_a_life_is_open_until_its_own_end_is_noted(kept: Journal) -> None:
    assert kept.open_life() == 0
    kept.append("open", life=1)
    assert kept.open_life() == 1
    kept.append("open", life=2)
    kept.append("end", life=1, status="KILLED")  # noticed late
    assert kept.open_life() == 2
    kept.append("end", life=2, status="FINISHED")
    assert kept.open_life() == 0


def test_a_journal_belongs_to_one_process_until_that_ends(kept: Journal) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from lotlip_platform.journal import Journal\n"
        "with Journal(Path(sys.argv[1])).owned():\n"
        "    print('mine', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(kept.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        assert kept.is_owned
        with pytest.raises(TrackingError, match="stop it first"), kept.owned():
            pass
        process.kill()
    assert not kept.is_owned
    with kept.owned():
        assert kept.is_owned


def test_one_process_sends_at_a_time(kept: Journal) -> None:
    with kept.sending(), pytest.raises(BlockingIOError), kept.sending():
        pass
    with kept.sending():
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrackingError, match="File exists"), Journal(tmp_path / "file").owned():
        pass


def test_all_journals_are_found_and_one_that_was_removed_is_not() -> None:
    assert journals() == []
    for name in ("b", "a", "c"):
        journal(name).append("open", life=1)
    assert not journal("c").remove_if_sent()
    ((_, offset),) = journal("c").read(0)
    journal("c").write_sent(Sent(offset=offset))
    assert journal("c").remove_if_sent()
    assert [found.folder.name for found in journals()] == ["a", "b"]
