"""Benchmarks on shards: what is asked of a model, and what it answers.

`retrieval` works on any data set of this project. `scenes` is for the procedural one: its captions
come with their facts, so a short caption's right images are all those that it is true of.

Shape suffixes: N samples, D embedding width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from lotlip.captions import split_sentences
from lotlip.data import scenes
from lotlip.data.manifest import Manifest
from lotlip.data.sample import Sample
from lotlip.data.shards import read_samples
from lotlip.data.store import Store
from lotlip.errors import ConfigError, DataError
from lotlip.evaluate.embed import embed_texts, pool_images, project_images
from lotlip.evaluate.figures import Hit, retrieval_sheet
from lotlip.evaluate.ranks import retrieval_ranks
from lotlip.evaluate.retrieval import (
    RECALL_AT,
    Answers,
    Interval,
    answers_at,
    retrieval_answers,
)
from lotlip.evaluate.zero_shot import classifier, zero_shot_answers
from lotlip.images import decode
from lotlip.model import LoTLIP
from lotlip.model.image_tower import ImageTower

BENCHMARKS = ("retrieval", "scenes")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Which benchmark a model meets while it trains and when it is done."""

    data: str = ""
    """A held-out data set: a folder or s3://BUCKET/PREFIX. Empty: no evaluation."""
    benchmark: Literal["retrieval", "scenes"] = "retrieval"
    """`retrieval` takes any data set with long captions; `scenes` adds what only scenes can be
    asked: zero-shot classes, and short captions that are true of several images."""
    captioner: str = ""
    """Whose long captions are retrieved by. Empty: those of the first captioner by name."""
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
    answers: dict[str, Answers] = field(default_factory=dict)
    """By names such as `long_text_to_image_r1`."""

    @cached_property
    def metrics(self) -> dict[str, Interval]:
        """Shares from 0 to 1 with their 95% intervals."""
        return {name: answers.interval() for name, answers in self.answers.items()}


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a model makes of a benchmark's samples."""

    image_ND: Tensor
    short_ND: Tensor
    long_ND: Tensor
    headless_ND: Tensor
    """Of long captions without their first sentence."""
    classes: Mapping[str, Tensor] = field(default_factory=dict)
    """A classifier [C, D] for each task of `Benchmark.prompts`."""


def read_benchmark(
    store: Store, manifest: Manifest, num_samples: int, captioner: str = ""
) -> list[Sample]:
    """The samples that `benchmark_samples` gives, images and all."""
    return list(benchmark_samples(store, manifest, num_samples, captioner))


def benchmark_samples(
    store: Store, manifest: Manifest, num_samples: int, captioner: str = ""
) -> Iterator[Sample]:
    """The samples of a benchmark; `num_samples` 0 reads all.

    With a `captioner` they have no long caption but that one's. Raises: DataError if there are
    fewer than asked for, or one has no long caption to retrieve by.
    """
    there = manifest.num_samples
    if there < num_samples:
        raise DataError(f"{store.uri} has {there} samples, {num_samples} were asked for")
    for sample in islice(read_samples(store, manifest), num_samples or None):
        yield _of_captioner(sample, captioner, store.uri)


def _of_captioner(sample: Sample, captioner: str, uri: str) -> Sample:
    long = {name: text for name, text in sample.long.items() if captioner in ("", name)}
    if not long:
        by = f" by eval.captioner={captioner}" if captioner else ""
        raise DataError(f"{uri}: sample {sample.key} has no long caption{by} to retrieve by")
    return replace(sample, long=long)


class Benchmark:
    """A benchmark that a model meets again and again while it learns.

    What a locked image tower makes of the images is kept, as are the images that a caption is true
    of.
    """

    def __init__(self, name: str, samples: Sequence[Sample]) -> None:
        """Raises: ConfigError for an unknown name, DataError for samples that don't fit it."""
        if name not in BENCHMARKS:
            raise ConfigError(f"there is no benchmark {name}: choose from {', '.join(BENCHMARKS)}")
        self.name, self.samples = name, samples
        self._pooled: tuple[ImageTower, Tensor] | None = None
        if name == "scenes":
            self._pictured, self._facts = _scenes_of(samples)

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """What is read of each sample: `short`, `long` and `headless`, each [N]."""
        long = [long_caption(sample) for sample in self.samples]
        return {
            "short": [sample.short for sample in self.samples],
            "long": long,
            "headless": [_without_first_sentence(caption) for caption in long],
        }

    @property
    def prompts(self) -> dict[str, list[list[str]]]:
        """Of zero-shot tasks: of each class, equally many prompts."""
        if self.name != "scenes":
            return {}
        classes = {"class": scenes.CLASSES, "colour_class": scenes.label_classes()}
        return {
            task: [scenes.class_prompts(phrase) for phrase in phrases]
            for task, phrases in classes.items()
        }

    def meet(self, model: LoTLIP) -> tuple[Report, Features]:
        """In a process group, all workers call it and all get the answer."""
        encode = partial(embed_texts, model)
        features = Features(
            image_ND=project_images(model, self._pooled_by(model)),
            **{f"{name}_ND": encode(texts) for name, texts in self.texts.items()},
            classes={task: classifier(encode, prompts) for task, prompts in self.prompts.items()},
        )
        answers = self.answers(features)
        report = Report(benchmark=self.name, num_samples=len(self.samples), answers=answers)
        return report, features

    def answers(self, features: Features) -> dict[str, Answers]:
        """By names such as `long_text_to_image_r1`."""
        image_ND, texts = features.image_ND, self.texts
        answers = _prefixed("long", _caption_retrieval(image_ND, features.long_ND, texts["long"]))
        found = _caption_retrieval(image_ND, features.headless_ND, texts["headless"])
        answers |= {f"headless_text_to_image_r{k}": found[f"text_to_image_r{k}"] for k in RECALL_AT}
        if self.name == "scenes":
            return answers | self._scene_answers(features)
        short = _caption_retrieval(image_ND, features.short_ND, texts["short"])
        return answers | _prefixed("short", short)

    def _pooled_by(self, model: LoTLIP) -> Tensor:
        tower = model.image_tower
        if self._pooled is not None and self._pooled[0] is tower:
            return self._pooled[1]
        encoded = [sample.image for sample in self.samples]
        pooled_ND = pool_images(model, encoded, [sample.key for sample in self.samples])
        if model.image_tower_is_locked:
            self._pooled = tower, pooled_ND
        return pooled_ND

    def _scene_answers(self, features: Features) -> dict[str, Answers]:
        answers = _prefixed("short", self._fact_retrieval(features))
        labels: dict[str, Callable[[scenes.Scene], int]] = {
            "class": lambda scene: scenes.CLASSES.index(scene.kind),
            "colour_class": scenes.label_index,
        }
        for task, classifier_CD in features.classes.items():
            labels_N = torch.tensor([labels[task](scene) for scene in self._pictured])
            found = zero_shot_answers(features.image_ND, classifier_CD, labels_N)
            answers |= _prefixed(f"{task}_zero_shot", found)
        return answers

    def _fact_retrieval(self, features: Features) -> dict[str, Answers]:
        """Short captions find any scene they are true of; those that state nothing take no part."""
        telling, fact_T, true_FN = self._true
        text_TD = features.short_ND[telling]
        to_image = retrieval_ranks(text_TD, features.image_ND, lambda a, b: true_FN[fact_T[a:b]])
        told = true_FN.any(dim=0)
        true_NF = true_FN.T[told]
        to_text = retrieval_ranks(
            features.image_ND[told], text_TD, lambda a, b: true_NF[a:b][:, fact_T]
        )
        found = {f"image_to_text_r{k}": answers_at(to_text, k) for k in RECALL_AT}
        # Equal captions have equal answers: they are drawn together.
        same_T = caption_labels([self.samples[index].short for index in telling]).numpy()
        return found | {
            f"text_to_image_r{k}": answers_at(to_image, k, clusters=same_T) for k in RECALL_AT
        }

    @cached_property
    def _true(self) -> tuple[list[int], Tensor, Tensor]:
        """Which short captions state something, by number what each of them states [T], and of
        which scenes that is true [F, N]."""
        telling = [index for index, stated in enumerate(self._facts) if stated]
        stated = [json.dumps(self._facts[index], sort_keys=True) for index in telling]
        facts = {one: self._facts[index] for one, index in zip(stated, telling, strict=True)}
        number = {one: place for place, one in enumerate(facts)}
        rows = [[scenes.is_true_of(f, scene) for scene in self._pictured] for f in facts.values()]
        return telling, torch.tensor([number[one] for one in stated]), torch.tensor(rows)


def _scenes_of(samples: Sequence[Sample]) -> tuple[list[scenes.Scene], list[Any]]:
    """What each sample shows, and the facts that its short caption states. Raises: DataError."""

    def extra(sample: Sample, name: str) -> Any:
        if name not in sample.extra:
            raise DataError(
                f"the benchmark scenes needs samples of lotlip data scenes, sample {sample.key} "
                f"has no {name!r}"
            )
        return sample.extra[name]

    pictured = [scenes.Scene.from_json(extra(sample, "scene")) for sample in samples]
    return pictured, [extra(sample, "facts") for sample in samples]


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
) -> dict[str, Answers]:
    """One caption an image; a caption that several images share is right for each of them."""
    labels_N = caption_labels(captions)
    return retrieval_answers(image_ND, text_ND, image_labels_N=labels_N, text_labels_T=labels_N)


def caption_labels(captions: Sequence[str]) -> Tensor:
    """A number for each caption, equal where the captions are; one without a word is alone."""
    numbers: dict[str | int, int] = {}
    return torch.tensor(
        [
            numbers.setdefault(caption if caption.strip() else place, len(numbers))
            for place, caption in enumerate(captions)
        ]
    )


def _prefixed(prefix: str, found: dict[str, Answers]) -> dict[str, Answers]:
    return {f"{prefix}_{name}": answers for name, answers in found.items()}
