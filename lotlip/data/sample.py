"""One sample of a shard: an encoded image and its captions.

In a shard (a tar as webdataset writes them) a sample is two members that share their key:

    000012.jpg     the encoded image (jpg, jpeg, png or webp)
    000012.json    {"short": "a castle", "long": {"CAPTIONER": "In the ..."},
                    "source": "...", "licence": "..."}

`short` is the web alt-text. `long` maps each captioner to its caption; it may be empty. Further
fields are kept in `extra` as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lotlip.errors import DataError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
FEATURE_SUFFIX = "npy"
"""In a set of image features, see `features`: the feature, which then takes the image's place."""
UNREADABLE = "unreadable"
"""The same of an image that could not be used: why not."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image as it lies in the shard, not yet decoded, with its captions."""

    key: str
    image: bytes
    image_suffix: str = "jpg"
    short: str
    long: Mapping[str, str]
    source: str = ""
    licence: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def to_members(sample: Sample) -> dict[str, Any]:
    """The sample as webdataset's TarWriter takes it.

    Raises: DataError for a key with a dot in its last part: webdataset takes the rest for a suffix.
    """
    if not sample.key.rpartition("/")[2] or "." in sample.key.rpartition("/")[2]:
        raise DataError(f"sample key {sample.key!r} must have a name without dots; rename it")
    text = {
        "short": sample.short,
        "long": dict(sample.long),
        "source": sample.source,
        "licence": sample.licence,
        **sample.extra,
    }
    return {
        "__key__": sample.key,
        sample.image_suffix: sample.image,
        "json": json.dumps(text, ensure_ascii=False, sort_keys=True).encode(
            errors="surrogatepass"  # half a surrogate pair, as broken escapes leave behind
        ),
    }


def from_members(members: Mapping[str, Any]) -> Sample:
    """The sample that webdataset read from a tar. Raises: DataError that says what is wrong."""
    key = str(members["__key__"])
    if UNREADABLE in members:
        raise DataError(members[UNREADABLE].decode())
    suffix = next((name for name in (*IMAGE_SUFFIXES, FEATURE_SUFFIX) if name in members), None)
    if suffix is None:
        raise DataError(f"sample {key}: no image ({', '.join(IMAGE_SUFFIXES)})")
    if "json" not in members:
        raise DataError(f"sample {key}: no json beside the image")
    try:
        text = json.loads(members["json"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"sample {key}: its json does not parse: {error}") from error
    if not isinstance(text, dict) or not isinstance(text.get("short"), str):
        raise DataError(f"sample {key}: its json has no text 'short'")
    long = text.get("long", {})
    if not isinstance(long, dict) or not all(isinstance(caption, str) for caption in long.values()):
        raise DataError(f"sample {key}: 'long' must map captioners to texts")
    known = ("short", "long", "source", "licence")
    return Sample(
        key=key,
        image=members[suffix],
        image_suffix=suffix,
        short=text["short"],
        long=long,
        source=str(text.get("source", "")),
        licence=str(text.get("licence", "")),
        extra={name: value for name, value in text.items() if name not in known},
    )
