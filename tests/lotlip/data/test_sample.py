from __future__ import annotations

import json
from typing import Any

import pytest

from lotlip.data.sample import Sample, from_members, to_members
from lotlip.errors import DataError

SAMPLE = Sample(
    key="folder.v1/000012",
    image=b"\x89PNG...",
    image_suffix="png",
    short="ein Schloß am See",
    long={"llava": "In the middle. A castle.", "b": ""},
    source="web",
    licence="CC0-1.0",
    extra={"scene": {"kind": "castle"}, "facts": [1, 2]},
)


def test_a_sample_survives_its_members() -> None:
    members = to_members(SAMPLE)
    assert set(members) == {"__key__", "png", "json"}
    assert from_members(members) == SAMPLE


def test_the_json_is_readable_and_independent_of_the_order_of_captioners() -> None:
    members = to_members(SAMPLE)
    assert "Schloß".encode() in members["json"]
    reordered = Sample(**{**vars(SAMPLE), "long": {"b": "", "llava": SAMPLE.long["llava"]}})
    assert to_members(reordered)["json"] == members["json"]


def test_half_a_surrogate_pair_survives() -> None:
    sample = Sample(key="1", image=b"", short="a \ud83d", long={})
    assert from_members(to_members(sample)) == sample


def test_what_web_data_leaves_out_is_empty() -> None:
    sample = from_members({"__key__": "1", "jpeg": b"i", "json": b'{"short": "a cat"}'})
    expected = Sample(key="1", image=b"i", image_suffix="jpeg", short="a cat", long={})
    assert sample == expected


@pytest.mark.parametrize("key", ["a.b", "folder/a.b", "", "folder/"])
def test_a_key_that_would_be_read_as_another_is_refused(key: str) -> None:
    with pytest.raises(DataError, match="must have a name without dots"):
        to_members(Sample(key=key, image=b"", short="", long={}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jpg": None}, r"sample 7: no image \(jpg, jpeg, png, webp\)"),
        ({"json": None}, "sample 7: no json beside the image"),
        ({"json": b""}, "sample 7: its json does not parse: "),
        ({"json": b'{"short": "a cat"'}, "sample 7: its json does not parse: "),
        ({"json": b'{"short": "\xff"}'}, "sample 7: its json does not parse: "),
        ({"json": b"[" * 100_000}, "sample 7: its json does not parse: "),
        ({"json": b'["short"]'}, "sample 7: its json has no text 'short'"),
        ({"json": b"{}"}, "sample 7: its json has no text 'short'"),
        ({"json": b'{"short": null}'}, "sample 7: its json has no text 'short'"),
        ({"json": b'{"short": "a", "long": "b"}'}, "sample 7: 'long' must map captioners to texts"),
        ({"json": b'{"short": "a", "long": {"b": 1}}'}, "sample 7: 'long' must map captioners"),
    ],
)
def test_what_is_wrong_with_a_sample_is_said_in_one_line(
    change: dict[str, Any], message: str
) -> None:
    members = {"__key__": "7", "jpg": b"image", "json": json.dumps({"short": "a cat"}).encode()}
    assert from_members(members).short == "a cat"
    changed = {name: value for name, value in {**members, **change}.items() if value is not None}
    with pytest.raises(DataError, match=message) as caught:
        from_members(changed)
    assert "\n" not in str(caught.value)
