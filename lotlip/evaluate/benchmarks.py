"""Benchmarks on shards: what is asked of a model, and what it answers.

`retrieval` works on any data set of this project. `scenes` is for the procedural one: its captions
come with their facts, so a short caption's right images are all those that it is true of.

Shape suffixes: N samples, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from lotlip.captions import split_sentences
from lotlip.data import scenes
from lotlip.data.manifest import Manifest
from lotlip.data.sample import Sample
from lotlip.data.shards import read_samples
from lotlip.data.store import Store
from lotlip.errors import ConfigError, DataError
from lotlip.evaluate.embed import embed_images, embed_texts
from lotlip.evaluate.figures import Hit, retrieval_sheet
from lotlip.evaluate.ranks import retrieval_ranks
from lotlip.evaluate.retrieval import (
    RECALL_AT,
    Interval,
    recall_at,
    retrieval_report,
)
from lotlip.evaluate.zero_shot import classifier, zero_shot_report
from lotlip.images import decode
from lotlip.model import LoTLIP

BENCHMARKS = ("retrieval", "scenes")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Which benchmark a model meets while it trains and when it is done."""

    data: str = ""
    """A held-out data set: a folder or s3://BUCKET/PREFIX. Empty: no evaluation."""
    benchmark: Literal["retrieval", "scenes"] = "retrieval"
    """`retrieval` takes any data set with long captions; `scenes` adds what only scenes can be
    asked: zero-shot classes, and short captions that are true of several images."""
    num_samples: int = 1000
    """The first samples of the data set; 0 takes all. Recall depends on it: compare like with
    like."""

    def __post_init__(self) -> None:
        if self.num_samples < 0:
            raise ConfigError(f"eval.num_samples={self.num_samples} must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a model achieved."""

    benchmark: str
    num_samples: int
    metrics: dict[str, Interval] = field(default_factory=dict)
    """Shares from 0 to 1 with their 95% intervals, by names such as `long_text_to_image_r1`."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of a benchmark's samples, all [N, D]."""

    image_ND: Tensor
    short_ND: Tensor
    long_ND: Tensor


def read_benchmark(store: Store, manifest: Manifest, num_samples: int) -> list[Sample]:
    """The samples of a benchmark; `num_samples` 0 reads all.

    Raises: DataError if there are fewer than asked for, or one has no long caption.
    """
    samples = list(islice(read_samples(store, manifest), num_samples or None))
    if len(samples) < num_samples:
        raise DataError(
            f"{store.uri} has {len(samples)} samples, eval.num_samples={num_samples} were asked for"
        )
    for sample in samples:
        if not sample.long:
            raise DataError(f"{store.uri}: sample {sample.key} has no long caption to retrieve by")
    return samples


def run_benchmark(
    name: str, model: LoTLIP, samples: Sequence[Sample], *, official_text: bool = False
) -> tuple[Report, Features]:
    """Meet a benchmark. In a process group, all workers call it and all get the answer.

    `official_text` reads captions as the authors' benchmarks do, decimals and abbreviations cut
    at their full stops: for figures to be compared with theirs.

    Raises: ConfigError for an unknown name, DataError for samples that don't fit it.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"there is no benchmark {name}: choose from {', '.join(BENCHMARKS)}")
    long = [long_caption(sample) for sample in samples]
    features = Features(
        image_ND=embed_images(model, [s.image for s in samples], [s.key for s in samples]),
        short_ND=embed_texts(model, [s.short for s in samples], official=official_text),
        long_ND=embed_texts(model, long, official=official_text),
    )
    metrics = _prefixed("long", _caption_retrieval(features.image_ND, features.long_ND, long))
    headless = [_without_first_sentence(caption) for caption in long]
    headless_ND = embed_texts(model, headless, official=official_text)
    found = _caption_retrieval(features.image_ND, headless_ND, headless)
    metrics |= {f"headless_text_to_image_r{k}": found[f"text_to_image_r{k}"] for k in RECALL_AT}
    if name == "scenes":
        metrics |= _scene_metrics(model, samples, features)
    else:
        short = _caption_retrieval(features.image_ND, features.short_ND, [s.short for s in samples])
        metrics |= _prefixed("short", short)
    return Report(benchmark=name, num_samples=len(samples), metrics=metrics), features


def long_caption(sample: Sample) -> str:
    """The long caption that is retrieved by: that of the first captioner by name."""
    return sample.long[min(sample.long)]


def _without_first_sentence(caption: str) -> str:
    """It often sums up all the others; a caption of one sentence stays as it is."""
    return " ".join(split_sentences(caption)[1:]) or caption


def retrieval_figure(
    features: Features, samples: Sequence[Sample], *, num_queries: int = 6, num_hits: int = 5
) -> bytes:
    """What the first long captions find among the images, as a PNG."""
    scores = features.long_ND[:num_queries] @ features.image_ND.T
    rows = []
    for query, best in enumerate(scores.topk(min(num_hits, len(samples)), dim=1).indices.tolist()):
        hits = [
            Hit(decode(samples[item].image), float(scores[query, item]), item == query)
            for item in best
        ]
        rows.append((long_caption(samples[query]), hits))
    heading = f"Long captions and the images they find among {len(samples)}"
    return retrieval_sheet(rows, heading=heading)


def _caption_retrieval(
    image_ND: Tensor, text_ND: Tensor, captions: Sequence[str]
) -> dict[str, Interval]:
    """One caption an image; a caption that several images share is right for each of them."""
    labels_N = _same(captions)
    return retrieval_report(image_ND, text_ND, image_labels_N=labels_N, text_labels_T=labels_N)


def _scene_metrics(
    model: LoTLIP, samples: Sequence[Sample], features: Features
) -> dict[str, Interval]:
    try:
        pictured = [scenes.Scene.from_json(sample.extra["scene"]) for sample in samples]
        facts = [sample.extra["facts"] for sample in samples]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"the benchmark scenes needs samples of lotlip data scenes, these have no {error}"
        ) from error

    def encode(texts: Sequence[str]) -> Tensor:
        return embed_texts(model, texts)

    metrics = _prefixed("short", _fact_retrieval(features, facts, pictured))
    tasks: list[tuple[str, Sequence[str], Callable[[scenes.Scene], int]]] = [
        ("class", scenes.CLASSES, lambda scene: scenes.CLASSES.index(scene.kind)),
        ("colour_class", scenes.label_classes(), scenes.label_index),
    ]
    for task, phrases, label in tasks:
        prompts = [scenes.class_prompts(phrase) for phrase in phrases]
        labels_N = torch.tensor([label(scene) for scene in pictured])
        report = zero_shot_report(features.image_ND, classifier(encode, prompts), labels_N)
        metrics |= _prefixed(f"{task}_zero_shot", report)
    return metrics


def _fact_retrieval(
    features: Features, facts: Sequence[dict], pictured: Sequence[scenes.Scene]
) -> dict[str, Interval]:
    """Short captions find any scene they are true of; those that state nothing take no part."""
    telling = [index for index, stated in enumerate(facts) if stated]
    true_TN = torch.tensor(
        [[scenes.is_true_of(facts[index], scene) for scene in pictured] for index in telling]
    )
    text_TD = features.short_ND[telling]
    to_image = retrieval_ranks(text_TD, features.image_ND, lambda a, b: true_TN[a:b])
    told = true_TN.any(dim=0)
    to_text = retrieval_ranks(features.image_ND[told], text_TD, lambda a, b: true_TN.T[told][a:b])
    report = {f"image_to_text_r{k}": recall_at(to_text, k) for k in RECALL_AT}
    return report | {f"text_to_image_r{k}": recall_at(to_image, k) for k in RECALL_AT}


def _same(captions: Sequence[str]) -> Tensor:
    """A number for each caption, equal where the captions are."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])


def _prefixed(prefix: str, metrics: dict[str, Interval]) -> dict[str, Interval]:
    return {f"{prefix}_{name}": interval for name, interval in metrics.items()}
