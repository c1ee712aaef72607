"""What a row of a caption file says of an image, whatever the file's format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lotlip.errors import ConfigError

Format = Literal[
    "dreamlip-csv", "dreamlip-json", "recap-csv", "sharegpt4v", "csv", "jsonl", "parquet"
]
FORMATS: tuple[str, ...] = get_args(Format)
PLAIN_FORMATS = ("csv", "jsonl", "parquet")
"""Whose columns have to be told."""
CAPTIONERS = {"IB": "instructblip", "SV": "sharegpt4v", "LLA": "llava"}
"""As DreamLIP abbreviates them."""
_TARGETS = ("image", "short", "sha256", "md5", "source", "licence")
_LONG = re.compile(r"long\.[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """One image with its captions."""

    number: int
    """Of the row among all, from 0."""
    image: str
    """A path, a URL, or whatever else names the image."""
    short: str = ""
    long: Mapping[str, str]
    """By captioner."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else is to be kept in the sample."""
    checksum: str = ""
    """`sha256:...` or `md5:...` of the image, if it is told."""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that says nothing of use."""

    number: int
    where: str
    """File, and line or place in it; empty where an image is told."""
    reason: str
    kind: str = "row"
    """Of what is wrong, a word."""
    image: str = ""
    """As `CaptionRow.image`, if the row could be read."""


@dataclass(frozen=True)
class ColumnMap:
    """Which column of a plain file holds what."""

    columns: Mapping[str, str]
    """`image`, `short`, `long.CAPTIONER`, `sha256`, `md5`, `source`, `licence` to columns."""

    def __post_init__(self) -> None:
        for target in self.columns:
            if target not in _TARGETS and not _LONG.fullmatch(target):
                raise ConfigError(
                    f"columns.{target}: known are {', '.join(_TARGETS)} and long.CAPTIONER"
                )
        captions = [name for name in self.columns if name == "short" or name.startswith("long.")]
        if "image" not in self.columns or not captions:
            raise ConfigError(
                "columns must tell where the image and a caption are, as in "
                "image=url,short=caption,long.llava=llava_caption"
            )

    def check(self, has: Sequence[str], where: str) -> None:
        """Raises: ConfigError if a file lacks a column."""
        for target, column in self.columns.items():
            if column not in has:
                raise ConfigError(
                    f"{where} has no column {column!r} for {target}; it has: {', '.join(has)}"
                )


def plain(number: int, values: Mapping[str, Any], columns: ColumnMap) -> CaptionRow:
    """A row of a plain file. Raises: ValueError that says what is wrong."""
    found = {name: _text(values.get(column), column) for name, column in columns.columns.items()}
    sums = [f"{kind}:{found[kind].lower()}" for kind in ("sha256", "md5") if found.get(kind)]
    return _row(
        number,
        found["image"],
        short=found.get("short", ""),
        long={k.removeprefix("long."): v for k, v in found.items() if k.startswith("long.")},
        extra={name: found[name] for name in ("source", "licence") if found.get(name)},
        checksum=sums[0] if sums else "",
    )


def dreamlip_csv(number: int, values: Sequence[str]) -> CaptionRow:
    """Image, alt-text, and by InstructBLIP, ShareGPT4V and LLaVA a short and a long caption each.

    Raises: ValueError.
    """
    if len(values) != 8:
        raise ValueError(f"{len(values)} columns where there should be 8")
    image, short, *rest = values
    return _row(
        number,
        image,
        short=short,
        long=dict(zip(CAPTIONERS.values(), rest[1::2], strict=True)),
        extra=_short_by(dict(zip(CAPTIONERS.values(), rest[0::2], strict=True))),
    )


def recap_csv(number: int, values: Sequence[str], order: Sequence[str]) -> CaptionRow:
    """A URL and long captions by the captioners of `order`. Raises: ValueError."""
    if len(values) != 1 + len(order):
        raise ValueError(f"{len(values)} columns where there should be {1 + len(order)}")
    return _row(number, values[0], long=dict(zip(order, values[1:], strict=True)))


def recap_order(header: Sequence[str]) -> list[str]:
    """The captioners of a header's columns, the URL's apart: by name, or as DreamLIP orders them.

    Raises: ValueError if there aren't four columns, or some of them tell and others don't.
    """
    if len(header) != 4:
        raise ValueError(f"{len(header)} columns where there should be 4: a URL, three captions")
    named = [_captioner_in(column) for column in header[1:]]
    if not any(named):
        return list(CAPTIONERS.values())
    if sorted(named) != sorted(CAPTIONERS.values()):
        raise ValueError(
            f"columns {', '.join(header[1:])} do not tell which captions are whose: name them "
            "longIB, longSV, longLLA, or give them as format csv with --columns"
        )
    return named


def _captioner_in(column: str) -> str:
    """Whose captions a column of this name holds; empty if it does not say."""
    lowered = column.lower()
    known = [name for name in CAPTIONERS.values() if name in lowered]
    short = [
        name for k, name in CAPTIONERS.items() if re.search(rf"(?<![A-Z]){k}(?![A-Z])", column)
    ]
    parts = re.split(r"[^a-z]+", lowered)
    short += [name for k, name in CAPTIONERS.items() if k.lower() in parts]
    found = known or list(dict.fromkeys(short))
    return found[0] if len(found) == 1 else ""


def dreamlip_json(number: int, values: Any) -> CaptionRow:
    """DreamLIP's JSON of one image. Raises: ValueError."""
    if not isinstance(values, Mapping):
        raise ValueError("is no JSON object")
    return _row(
        number,
        _text(values.get("ImagePath"), "ImagePath"),
        short=_text(values.get("raw_caption"), "raw_caption"),
        long=_captions(values, "long"),
        extra=_short_by(_captions(values, "short")),
    )


def sharegpt4v(number: int, values: Any) -> CaptionRow:
    """An entry of ShareGPT4V: an image and what was asked and answered. Raises: ValueError."""
    if not isinstance(values, Mapping) or not isinstance(values.get("conversations"), list):
        raise ValueError("no conversations")
    turns = [turn for turn in values["conversations"] if isinstance(turn, Mapping)]
    answers = [_text(turn.get("value"), "value") for turn in turns if turn.get("from") == "gpt"]
    if len(answers) != 1:
        raise ValueError(f"{len(answers)} answers, so they are no caption")
    name = _text(values.get("id"), "id")
    extra = {"id": name} if name else {}
    image = _text(values.get("image"), "image")
    return _row(number, image, long={"sharegpt4v": answers[0]}, extra=extra)


def _row(
    number: int,
    image: str,
    *,
    short: str = "",
    long: Mapping[str, str],
    extra: Mapping[str, Any] | None = None,
    checksum: str = "",
) -> CaptionRow:
    image, short = image.strip(), short.strip()
    long = {name: text.strip() for name, text in long.items() if text.strip()}
    if not image:
        raise ValueError("it names no image")
    if not short and not long:
        raise ValueError("it has no caption")
    return CaptionRow(
        number=number, image=image, short=short, long=long, extra=extra or {}, checksum=checksum
    )


def _captions(values: Mapping[str, Any], kind: str) -> dict[str, str]:
    names = {f"{kind}{letters}_captions": name for letters, name in CAPTIONERS.items()}
    return {name: _text(values.get(key), key) for key, name in names.items()}


def _short_by(captions: Mapping[str, str]) -> dict[str, Any]:
    """Short captions by captioners: kept, though `short` is the alt-text."""
    found = {name: text.strip() for name, text in captions.items() if text.strip()}
    return {"short_by": found} if found else {}


def _text(value: Any, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return " ".join(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "" if value != value else str(value)  # NaN, as data frames write nothing
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value
