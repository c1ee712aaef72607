"""What a data set holds: statistics of its captions and images, and a look at its samples."""

from __future__ import annotations

import io
import itertools
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from lotlip.data.manifest import Manifest, read_manifest
from lotlip.data.sample import Sample
from lotlip.data.shards import read_samples
from lotlip.data.store import Store
from lotlip.errors import ConfigError, DataError
from lotlip.evaluate.caption_charts import captioners_chart
from lotlip.evaluate.figures import contact_sheet
from lotlip.images import decode
from lotlip.relabel.audit import AuditConfig
from lotlip.relabel.profile import CaptionProfile
from lotlip.tokenizer import Tokenizer
from lotlip_platform.storage import open_store

COLUMNS = 4
MOST_SHOWN = 100
SHOWN_LETTERS = 420  # of a long caption, about 12 lines below its image


@dataclass(frozen=True, kw_only=True)
class Stats:
    """`sample_bytes` holds a value for each sample read."""

    uri: str
    digest: str
    num_shards: int
    num_samples: int
    """Of the whole data set; `num_read` is how many the rest is drawn from."""
    num_read: int
    num_bytes: int
    unit: str
    """What captions' lengths count: words or tokens."""
    profiles: Mapping[str, CaptionProfile]
    """For `short` and each `long.CAPTIONER`, what these captions are like."""
    image_sizes: Mapping[tuple[int, int], int]
    """How many images have this width and height in pixels."""
    sample_bytes: Sequence[int]
    """Of the encoded image and the captions as UTF-8."""

    def spread(self, name: str) -> dict[str, float]:
        """Of the lengths of one kind of caption: num, mean, p5, median, p95, max."""
        return _spread(self.profiles[name].lengths)

    def summary(self) -> dict[str, Any]:
        """The numbers in short, as JSON can hold them."""
        sizes = sorted(self.image_sizes.items(), key=lambda item: (-item[1], item[0]))
        return {
            "uri": self.uri,
            "digest": self.digest,
            "num_shards": self.num_shards,
            "num_samples": self.num_samples,
            "num_read": self.num_read,
            "num_bytes": self.num_bytes,
            "unit": self.unit,
            "captions": {
                name: {**self.spread(name), **profile.summary()}
                for name, profile in self.profiles.items()
            },
            "image_sizes_px": {f"{width}x{height}": n for (width, height), n in sizes},
            "sample_bytes": _spread(self.sample_bytes),
        }


def stats(uri: str, *, num_samples: int = 0, tokenizer: Tokenizer | None = None) -> Stats:
    """Statistics of the first `num_samples` samples, or of all with 0.

    Captions are measured in words, or with a tokenizer in its tokens: as a model gets them, with
    control tokens and cut to `context_length`. Raises: DataError at the first bad sample.
    """
    store = open_store(uri)
    manifest = read_manifest(store)
    count = (lambda text: len(tokenizer.encode(text))) if tokenizer else (lambda t: len(t.split()))
    profiles: dict[str, CaptionProfile] = {}
    image_sizes: Counter[tuple[int, int]] = Counter()
    sample_bytes = array("Q")
    for sample in itertools.islice(read_samples(store, manifest), num_samples or None):
        captions = _captions(sample)
        for name, caption in captions.items():
            if not caption.strip():  # as of sets without alt-texts
                continue
            if name not in profiles:
                profiles[name] = CaptionProfile(None if name == "short" else AuditConfig(), count)
            profiles[name].add(caption, sample.short)
        image_sizes[_image_size(sample, store.uri)] += 1
        text_bytes = sum(len(text.encode(errors="replace")) for text in captions.values())
        sample_bytes.append(len(sample.image) + text_bytes)
    return Stats(
        uri=store.uri,
        digest=manifest.digest,
        num_shards=len(manifest.shards),
        num_samples=manifest.num_samples,
        num_read=len(sample_bytes),
        num_bytes=manifest.num_bytes,
        unit="tokens" if tokenizer else "words",
        profiles=dict(sorted(profiles.items(), key=lambda item: (item[0] != "short", item[0]))),
        image_sizes=image_sizes,
        sample_bytes=sample_bytes,
    )


def stats_figure(stats: Stats) -> bytes:
    """The captioners side by side, as a PNG."""
    return captioners_chart(
        stats.profiles,
        unit=stats.unit,
        title=f"Captions of {stats.num_read:,} samples in {stats.uri}",
    )


def show(uri: str, *, num_samples: int = 12, start: int = 0) -> bytes:
    """A contact sheet of the samples from position `start` on with their captions, as a PNG.

    Below each image stand its short caption and, trimmed, each long one.
    Raises: DataError, ConfigError.
    """
    store = open_store(uri)
    manifest = read_manifest(store)
    if not 1 <= num_samples <= MOST_SHOWN:
        raise ConfigError(f"num_samples={num_samples} must be from 1 to {MOST_SHOWN}")
    if not 0 <= start < manifest.num_samples:
        raise ConfigError(f"start={start} must be from 0 to {manifest.num_samples - 1} in {uri}")
    samples = list(itertools.islice(_samples_from(store, manifest, start), num_samples))
    images = []
    for sample in samples:
        try:
            images.append(decode(sample.image))
        except DataError as error:
            raise DataError(f"{store.uri}: sample {sample.key}: {error}") from error
    last = start + len(samples) - 1
    heading = f"{store.uri}: samples {start} to {last} of {manifest.num_samples:,}"
    return contact_sheet(images, [_title(s) for s in samples], columns=COLUMNS, heading=heading)


def _samples_from(store: Store, manifest: Manifest, start: int) -> Iterator[Sample]:
    """The samples from position `start` on; shards before it are not read."""
    shards = list(manifest.shards)
    while shards and start >= shards[0].num_samples:
        start -= shards.pop(0).num_samples
    return itertools.islice(
        read_samples(store, replace(manifest, shards=tuple(shards))), start, None
    )


def _title(sample: Sample) -> str:
    captions = [trimmed(sample.short)]
    for captioner, caption in sorted(sample.long.items()):
        name = f"{captioner}: " if len(sample.long) > 1 else ""
        captions.append(trimmed(name + caption))
    return "\n\n".join(captions)


def trimmed(caption: str) -> str:
    """A caption as one paragraph, as much of it as a contact sheet has room for."""
    text = " ".join(caption.split())
    if len(text) <= SHOWN_LETTERS:
        return text
    return text[:SHOWN_LETTERS].rsplit(" ", 1)[0] + " …"


def _captions(sample: Sample) -> dict[str, str]:
    long = {f"long.{captioner}": caption for captioner, caption in sample.long.items()}
    return {"short": sample.short, **long}


def _image_size(sample: Sample, uri: str) -> tuple[int, int]:
    """Width and height as the file's head gives them, without decoding it all."""
    try:
        with Image.open(io.BytesIO(sample.image)) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{uri}: sample {sample.key}: image does not open: {error}; "
            "lotlip data check lists all bad samples"
        ) from error


def _spread(values: Sequence[int]) -> dict[str, float]:
    low, median, high = (round(float(p), 1) for p in np.percentile(values, (5, 50, 95)))
    return {
        "num": len(values),
        "mean": round(float(np.mean(values)), 2),
        "p5": low,
        "median": median,
        "p95": high,
        "max": max(values),
    }
