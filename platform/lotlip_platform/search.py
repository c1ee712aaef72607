"""`lotlip search`: the images of a data set that fit a long description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch

from lotlip.data.manifest import read_manifest
from lotlip.data.sample import Sample
from lotlip.data.shards import read_samples
from lotlip.errors import ConfigError
from lotlip.evaluate.embed import best_device, embed_images, embed_texts
from lotlip.evaluate.figures import Hit, retrieval_sheet
from lotlip.images import decode
from lotlip.model import LoTLIP
from lotlip_platform.storage import open_store
from lotlip_platform.tables import aligned

_AT_ONCE = 512


@dataclass(frozen=True)
class Match:
    """An image that fits, with its cosine to the description."""

    sample: Sample
    score: float


def search(
    model: LoTLIP,
    uri: str,
    text: str,
    *,
    num_hits: int = 8,
    num_samples: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Match]:
    """The best images of a data set for a description, best first.

    `num_samples` looks at the first images only; 0 looks at all. Memory doesn't grow with them.
    Raises: ConfigError for an empty description, DataError.
    """
    if not text.strip():
        raise ConfigError("--text is empty: describe what the image should show")
    store = open_store(uri)
    manifest = read_manifest(store)
    total = min(num_samples or manifest.num_samples, manifest.num_samples)
    model = model.to(best_device())
    query_D = embed_texts(model, [text])[0]
    samples = islice(read_samples(store, manifest), total)
    best: list[Match] = []
    done = 0
    while batch := list(islice(samples, _AT_ONCE)):
        scores = embed_images(model, [s.image for s in batch], [s.key for s in batch]) @ query_D
        top = torch.topk(scores, min(num_hits, len(batch)))
        found = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        best += [Match(batch[index], score) for score, index in found]
        best = sorted(best, key=lambda match: -match.score)[:num_hits]
        done += len(batch)
        on_progress(done, total)
    return best


def cut_note(model: LoTLIP, text: str, name: str = "--text") -> str:
    """What to tell of a description that the model doesn't read to its end; empty if it does."""
    assert model.tokenizer is not None, "a model that was loaded or trained has its tokenizer"
    num_ids, most = model.tokenizer.full_length(text), model.tokenizer.context_length
    if num_ids <= most:
        return ""
    return f"{name} has {num_ids} tokens, the model reads {most}: its end is left out"


def search_sheet(text: str, matches: list[Match], *, heading: str, right: str = "") -> bytes:
    """The description and the images found, as a PNG; the one with key `right` is framed."""
    hits = [
        Hit(decode(match.sample.image), match.score, match.sample.key == right) for match in matches
    ]
    return retrieval_sheet([(text, hits)], heading=heading)


def match_table(matches: list[Match]) -> str:
    """The matches as a table in text."""
    rows = [
        [str(place), f"{match.score:.3f}", match.sample.key, " ".join(match.sample.short.split())]
        for place, match in enumerate(matches, start=1)
    ]
    return aligned([["", "score", "key", "short caption"], *rows])
