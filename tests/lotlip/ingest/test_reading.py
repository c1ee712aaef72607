"""Published captions in the formats in which they were published."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError, DataError
from lotlip.ingest.reading import find_files, read_rows
from lotlip.ingest.rows import BadRow, CaptionRow, ColumnMap, recap_order

HEADER = ["Image Path", "Raw", "sIB", "lIB", "sSV", "lSV", "sLLA", "lLLA"]
ROW = ["cc/1.jpg", " a castle ", "s ib", "l ib", "s sv", "l sv", "s lla", "l lla"]


def write_csv(path: Path, rows: list[list[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def read(
    path: Path, format: str, columns: dict[str, str] | None = None
) -> list[CaptionRow | BadRow]:
    store, name = (
        (FolderStore(path), "") if path.is_dir() else (FolderStore(path.parent), path.name)
    )
    files = find_files(store, name, format)
    return list(read_rows(store, files, format, ColumnMap(columns) if columns else None))


def reasons(rows: list[CaptionRow | BadRow]) -> list[tuple[int, str]]:
    return [(row.number, row.reason) for row in rows if isinstance(row, BadRow)]


def test_dreamlip_csv_goes_by_the_order_of_its_columns(tmp_path: Path):
    (row,) = read(write_csv(tmp_path / "a.csv", [HEADER, ROW]), "dreamlip-csv")
    assert row == CaptionRow(
        number=0,
        image="cc/1.jpg",
        short="a castle",
        long={"instructblip": "l ib", "sharegpt4v": "l sv", "llava": "l lla"},
        extra={"short_by": {"instructblip": "s ib", "sharegpt4v": "s sv", "llava": "s lla"}},
    )


def test_captions_may_hold_lines_quotes_and_commas(tmp_path: Path):
    text = 'A castle, "old"\nand a garden.\r\nÜber'
    (row,) = read(
        write_csv(tmp_path / "a.csv", [HEADER, [*ROW[:3], text, *ROW[4:]]]), "dreamlip-csv"
    )
    assert isinstance(row, CaptionRow)
    assert row.long["instructblip"] == text


def test_bad_rows_are_told_with_their_place_and_the_others_read_on(tmp_path: Path):
    path = write_csv(
        tmp_path / "a.csv",
        [HEADER, ROW, ["too", "short"], ["", *ROW[1:]], ["cc/2.jpg", *[""] * 7], ROW],
    )
    with path.open("ab") as file:
        file.write(b"cc/3.jpg,caf\xe9,a,b,c,d,e,f\n")
        file.write(b'cc/4.jpg,"' + b"x" * 140_000 + b'",a,b,c,d,e,f\n')
    rows = read(path, "dreamlip-csv")
    assert [row.number for row in rows] == list(range(7))
    assert reasons(rows) == [
        (1, "2 columns where there should be 8"),
        (2, "it names no image"),
        (3, "it has no caption"),
        (5, "it is no UTF-8"),
        (6, "field larger than field limit (131072)"),
    ]
    bad = rows[1]
    assert isinstance(bad, BadRow)
    assert bad.where == f"{path} line 3"


def test_a_file_of_another_format_is_told_at_its_header(tmp_path: Path):
    path = write_csv(tmp_path / "a.csv", [HEADER[:5], ROW[:5]])
    with pytest.raises(DataError, match=r"a\.csv is no dreamlip-csv: 5 columns where"):
        read(path, "dreamlip-csv")
    with pytest.raises(DataError, match=r"a\.csv is no recap-csv: 5 columns where"):
        read(path, "recap-csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="is empty: it should begin with a header"):
        read(tmp_path / "empty.csv", "recap-csv")


def test_recap_csv_has_an_address_and_three_captions(tmp_path: Path):
    path = write_csv(tmp_path / "a.csv", [["url", "a", "b", "c"], ["http://x/1", "i", "s", "l"]])
    (row,) = read(path, "recap-csv")
    assert isinstance(row, CaptionRow)
    assert (row.image, row.short) == ("http://x/1", "")
    assert row.long == {"instructblip": "i", "sharegpt4v": "s", "llava": "l"}


@pytest.mark.parametrize(
    "header, order",
    [
        (["url", "longIB", "longSV", "longLLA"], ["instructblip", "sharegpt4v", "llava"]),
        (["url", "longSV_captions", "longLLA_captions", "longIB_captions"], None),
        (["url", "caption_sharegpt4v", "caption_llava", "caption_instructblip"], None),
        (["url", "ShareGPT4V", "LLaVA", "InstructBLIP"], None),
        (["url", "sv", "lla", "ib"], None),
        (["u", "x", "y", "z"], ["instructblip", "sharegpt4v", "llava"]),
    ],
)
def test_names_of_columns_tell_the_captioner_where_they_can(header: list[str], order: Any):
    assert recap_order(header) == (order or ["sharegpt4v", "llava", "instructblip"])


def test_names_that_tell_only_in_part_are_not_guessed_at():
    for header in (["url", "longSV", "longSV", "longIB"], ["url", "longLLA", "longIB", "other"]):
        with pytest.raises(ValueError, match="do not tell which captions are whose"):
            recap_order(header)


DREAMLIP = {
    "raw_caption": "a castle",
    "shortIB_captions": "s ib",
    "longIB_captions": ["One.", "Two."],
    "shortSV_captions": "",
    "longSV_captions": "l sv",
    "longLLA_captions": None,
    "ImagePath": "cc/1.jpg",
}


def test_dreamlip_json_is_a_file_an_image_or_many_in_a_tar(tmp_path: Path):
    (tmp_path / "jsons").mkdir()
    for name in ("b", "a"):
        content = json.dumps({**DREAMLIP, "ImagePath": f"{name}.jpg"})
        (tmp_path / "jsons" / f"{name}.json").write_text(content)
    (tmp_path / "jsons" / "c.json").write_text('{"raw_caption": ')
    (tmp_path / "jsons" / "d.json").write_text("[1]")
    rows = read(tmp_path / "jsons", "dreamlip-json")
    assert reasons(rows)[0][1].startswith("its JSON does not parse: ")
    assert reasons(rows)[1] == (3, "is no JSON object")
    assert [row.image for row in rows if isinstance(row, CaptionRow)] == ["a.jpg", "b.jpg"]
    first = rows[0]
    assert isinstance(first, CaptionRow)
    assert first.long == {"instructblip": "One. Two.", "sharegpt4v": "l sv"}
    assert first.extra == {"short_by": {"instructblip": "s ib"}}
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        tar.add(tmp_path / "jsons", "jsons")
    assert [row.number for row in read(tmp_path / "many.tar", "dreamlip-json")] == [0, 1, 2, 3]
    lines = "".join(f"{json.dumps(DREAMLIP)}\n\n" for _ in range(3))
    (tmp_path / "many.jsonl").write_text(lines)
    assert len(read(tmp_path / "many.jsonl", "dreamlip-json")) == 3


def test_sharegpt4v_is_one_list_of_conversations(tmp_path: Path):
    def entry(*answers: str, **values: Any) -> dict[str, Any]:
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}]
        turns += [{"from": "gpt", "value": answer} for answer in answers]
        return {"id": "000", "image": "coco/1.jpg", "conversations": turns, **values}

    entries = [entry("A castle. 1.5"), entry("a", "b"), entry("x", image=None), {"id": "1"}]
    (tmp_path / "s.json").write_text(json.dumps(entries))
    rows = read(tmp_path / "s.json", "sharegpt4v")
    assert rows[0] == CaptionRow(
        number=0, image="coco/1.jpg", long={"sharegpt4v": "A castle. 1.5"}, extra={"id": "000"}
    )
    assert reasons(rows) == [
        (1, "2 answers, so they are no caption"),
        (2, "it names no image"),
        (3, "no conversations"),
    ]


PLAIN = {"image": "file", "short": "alt", "long.llava": "text", "sha256": "hash", "source": "from"}
VALUES = {
    "file": "1.jpg",
    "alt": "a castle",
    "text": "A castle.",
    "hash": "AB",
    "from": "x",
    "n": 3,
}


def test_plain_files_go_by_a_map_of_their_columns(tmp_path: Path):
    wanted = CaptionRow(
        number=0,
        image="1.jpg",
        short="a castle",
        long={"llava": "A castle."},
        extra={"source": "x"},
        checksum="sha256:ab",
    )
    names = list(VALUES)
    write_csv(tmp_path / "a.csv", [names, [str(v) for v in VALUES.values()]])
    write_csv(tmp_path / "a.tsv", [names, [str(v) for v in VALUES.values()]], delimiter="\t")
    (tmp_path / "a.jsonl").write_text(json.dumps(VALUES) + "\n")
    table = pyarrow.table({name: [value] for name, value in VALUES.items()})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet"):
        format = name.removeprefix("a.").replace("tsv", "csv")
        assert read(tmp_path / name, format, PLAIN) == [wanted], name
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(
            ConfigError, match=f"{name} has no column 'where' for image; it has: fi"
        ):
            read(tmp_path / name, name.removeprefix("a."), {**PLAIN, "image": "where"})


def test_numbers_and_missing_values_are_what_they_look_like(tmp_path: Path):
    lines = [
        {"file": 17, "text": "A castle."},
        {"file": "2.jpg", "text": float("nan"), "alt": "a"},
        {"file": "3.jpg", "text": {"a": 1}},
        {"file": None, "text": "x"},
        [1],
    ]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    columns = {"image": "file", "short": "alt", "long.llava": "text"}
    rows = read(tmp_path / "a.jsonl", "jsonl", columns)
    found = [(row.image, dict(row.long)) for row in rows if isinstance(row, CaptionRow)]
    assert found == [("17", {"llava": "A castle."}), ("2.jpg", {})]
    assert reasons(rows) == [
        (2, "text is no text"),
        (3, "it names no image"),
        (4, "is no JSON object"),
    ]


@pytest.mark.parametrize(
    "columns, text",
    [
        ({"image": "a"}, "columns must tell where the image and a caption are"),
        ({"short": "a"}, "columns must tell where the image and a caption are"),
        ({"image": "a", "long": "b"}, "columns.long: known are image, short"),
        ({"image": "a", "long.": "b"}, "columns.long.: known are"),
    ],
)
def test_a_wrong_map_is_told(columns: dict[str, str], text: str):
    with pytest.raises(ConfigError, match=text):
        ColumnMap(columns)


def test_several_files_are_one_sequence_and_may_be_compressed(tmp_path: Path):
    (tmp_path / "parts").mkdir()
    write_csv(tmp_path / "parts" / "a.csv", [HEADER, ROW, ROW])
    plain = write_csv(tmp_path / "b.csv", [HEADER, ROW])
    (tmp_path / "parts" / "b.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "parts" / "readme.txt").write_text("no captions")
    assert [row.number for row in read(tmp_path / "parts", "dreamlip-csv")] == [0, 1, 2]
    with pytest.raises(DataError, match=r"parts holds no \.parquet file, as format parquet has"):
        read(tmp_path / "parts", "parquet", PLAIN)
    with pytest.raises(DataError, match=r"nothing\.csv does not exist"):
        read(tmp_path / "nothing.csv", "dreamlip-csv")


def test_a_tar_may_be_compressed_too_but_parquet_packs_itself(tmp_path: Path):
    parts = tmp_path / "parts"
    parts.mkdir()
    entry = json.dumps(DREAMLIP).encode()
    with tarfile.open(parts / "a.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("1.json")
        member.size = len(entry)
        tar.addfile(member, io.BytesIO(entry))
    (row,) = read(parts, "dreamlip-json")
    assert isinstance(row, CaptionRow)
    (parts / "b.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(DataError, match=r"holds no \.parquet file"):
        read(parts, "parquet", PLAIN)
    text = pyarrow.array([b"ok.jpg", b"\xff.jpg"], pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"path": text, "text": text})
    pyarrow.parquet.write_table(table, parts / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet is damaged: .*utf-8"):
        read(parts / "c.parquet", "parquet", {"image": "path", "long.x": "text"})


def test_a_file_that_breaks_off_is_told_and_not_taken_for_its_end(tmp_path: Path):
    entries = [{"image": "a", "conversations": [{"from": "gpt", "value": "x" * 99}]}] * 50
    text = json.dumps(entries)
    (tmp_path / "s.json").write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"s\.json is damaged: "):
        read(tmp_path / "s.json", "sharegpt4v")
    whole = gzip.compress(write_csv(tmp_path / "a.csv", [HEADER, *[ROW] * 500]).read_bytes())
    (tmp_path / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.csv\.gz is damaged: "):
        read(tmp_path / "a.csv.gz", "dreamlip-csv")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"a\.parquet is damaged: "):
        read(tmp_path / "a.parquet", "parquet", PLAIN)


@pytest.mark.parametrize("format", ["dreamlip-csv", "sharegpt4v", "jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, format: str):
    def most_bytes(num_rows: int) -> int:
        path = tmp_path / f"{num_rows}.{'csv' if 'csv' in format else format[-5:]}"
        if format == "sharegpt4v":
            path = path.with_suffix(".json")
            turns = [{"from": "gpt", "value": "A castle. " * 20}]
            path.write_text(json.dumps([{"image": "a", "conversations": turns}] * num_rows))
        elif format == "jsonl":
            path = path.with_suffix(".jsonl")
            line = json.dumps({**VALUES, "text": "A castle. " * 20})
            path.write_text(f"{line}\n" * num_rows)
        else:
            write_csv(path, [HEADER, *[[*ROW[:3], "A castle. " * 20, *ROW[4:]]] * num_rows])
        store = FolderStore(tmp_path)
        columns = ColumnMap(PLAIN) if format == "jsonl" else None
        tracemalloc.start()
        read_all = sum(1 for _ in read_rows(store, [path.name], format, columns))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert read_all == num_rows
        return peak

    few = most_bytes(2_000)
    assert most_bytes(20_000) < 1.2 * few + 100_000
    assert few > io.DEFAULT_BUFFER_SIZE
