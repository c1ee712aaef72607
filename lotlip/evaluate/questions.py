"""Benchmarks under a protocol, as questions to a model: what is to be embedded, and what follows.

Published benchmarks and data sets of this project are asked alike.

Shape suffixes: N images, T texts, D width, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Protocol as Interface

import torch
from torch import Tensor

from lotlip.captions import assemble_official
from lotlip.data.manifest import Manifest, read_manifest
from lotlip.data.shards import read_samples
from lotlip.data.store import Store
from lotlip.errors import DataError
from lotlip.evaluate.benchmarks import Benchmark, benchmark_samples
from lotlip.evaluate.benchmarks import Features as DataSetFeatures
from lotlip.evaluate.published.measure import (
    CHANGES_OF_THE_WHOLE,
    Answered,
    classification,
    retrieval,
    variant_retrieval,
    variants_of,
)
from lotlip.evaluate.published.sets import Images, Labelled, Pairs, digest_of
from lotlip.evaluate.published.suite import CUT_AT_STOPS, PUBLISHED, About, Protocol

_CAPTIONS = "captions"
WHOLE = (_CAPTIONS, "long")
"""Names of texts that are captions as they are."""


class Features(Interface):
    """What a model made of a question; read when it is asked for, to be in memory by turns."""

    def images(self) -> Tensor:
        """[N, D]."""
        ...

    def texts(self, name: str) -> tuple[Tensor, Tensor]:
        """Of `Question.texts`: [T, D], and which of them were cut, [T]."""
        ...

    def classes(self, name: str) -> tuple[Tensor, Tensor]:
        """Of `Question.prompts`: [C, D], and of which a prompt was cut, [C]."""
        ...


class Question(Interface):
    """A benchmark under a protocol."""

    @property
    def about(self) -> About: ...
    @property
    def images(self) -> Images: ...

    @property
    def texts(self) -> Mapping[str, Sequence[str]]:
        """By name; none is empty."""
        ...

    @property
    def prompts(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """Of the classes of each task, equally many."""
        ...

    @property
    def size(self) -> int:
        """Texts, or of classification classes."""
        ...

    @property
    def example(self) -> str:
        """A long caption, for pictures; empty if there is none."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of texts, and of the images' names: equal where the same was asked."""
        ...

    def answered(self, features: Features) -> Answered:
        """Raises: DataError for features that aren't finite."""
        ...


def published_question(name: str, found: Pairs | Labelled, protocol: Protocol) -> Question:
    """A published benchmark as the protocol has it."""
    about = PUBLISHED[name]
    if isinstance(found, Labelled):
        return ClassificationQuestion(about, found, protocol.official)
    if protocol.official:
        found = replace(found, texts=[about.official_text(text) for text in found.texts])
    return RetrievalQuestion(about, found, protocol.official)


def read_data_set(store: Store, name: str, num_samples: int) -> DataSetQuestion:
    """A benchmark on a data set, of its first samples; `num_samples` 0 takes all.

    Their images are left in the shards. Raises: DataError.
    """
    manifest = read_manifest(store)
    samples, sums = [], []
    for sample in benchmark_samples(store, manifest, num_samples):
        sums.append(hashlib.sha256(sample.image).hexdigest())
        samples.append(replace(sample, image=b""))
    images = ShardImages(store, manifest, [sample.key for sample in samples], sums)
    about = About(
        title=name,
        kind="data",
        num_images=manifest.num_samples,
        num_texts=manifest.num_samples,
        files=f"{store.uri}, manifest {manifest.digest}",
        assembly="long: that of the first captioner by name; headless: without its first sentence",
        quirk=CUT_AT_STOPS,
        source=store.uri,
    )
    return DataSetQuestion(about, images, Benchmark(name, samples))


@dataclass(frozen=True)
class RetrievalQuestion:
    """Which image is meant by a text, and which text by an image?"""

    about: About
    pairs: Pairs
    official: bool

    @property
    def images(self) -> Images:
        return self.pairs.images

    @property
    def texts(self) -> Mapping[str, Sequence[str]]:
        there = {name: [t for t in changed if t] for name, changed in self._changed.items()}
        return {_CAPTIONS: self.pairs.texts, **there}

    @property
    def prompts(self) -> Mapping[str, Sequence[Sequence[str]]]:
        return {}

    @property
    def size(self) -> int:
        return len(self.pairs.texts)

    @property
    def example(self) -> str:
        return self.pairs.texts[0] if self.about.kind == "long" else ""

    @property
    def digest(self) -> str:
        return self.pairs.digest

    @property
    def _is_taken_apart(self) -> bool:
        """Official texts are cut in other places than between sentences."""
        return self.about.kind == "long" and not self.official

    @cached_property
    def _changed(self) -> Mapping[str, Sequence[str]]:
        if not self._is_taken_apart:
            return {}
        return {name: texts for name, texts in variants_of(self.pairs.texts).items() if any(texts)}

    def answered(self, features: Features) -> Answered:
        """Beside the features of images and captions those of one kind of changed texts are in
        memory.

        A caption that is cut takes no part in changes of the whole, which would also bring in what
        was cut off. A sentence alone is asked if it is read whole itself.
        """
        image_ND = features.images()
        text_TD, is_cut_T = features.texts(_CAPTIONS)
        answers, ranks = retrieval(
            *(self.pairs, image_ND, text_TD),
            official=self.official,
            by_length=self._is_taken_apart,
        )
        changes = {}
        whole = answers["text_to_image_r1"]
        for name, changed in self._changed.items():
            text_PD, is_cut_P = features.texts(name)
            is_asked_T = ~is_cut_T
            if name not in CHANGES_OF_THE_WHOLE:
                is_asked_T[torch.tensor([bool(text) for text in changed])] = ~is_cut_P
            left = variant_retrieval(self.pairs, changed, is_asked_T, image_ND, text_PD, whole)
            if left is not None:
                answers[f"{name}_text_to_image_r1"], changes[name] = left
        return Answered(answers=answers, ranks=ranks, changes=changes, num_cut=int(is_cut_T.sum()))


@dataclass(frozen=True)
class ClassificationQuestion:
    """Of which class is an image?"""

    about: About
    labelled: Labelled
    official: bool

    @property
    def images(self) -> Images:
        return self.labelled.images

    @property
    def texts(self) -> Mapping[str, Sequence[str]]:
        return {}

    @property
    def prompts(self) -> Mapping[str, Sequence[Sequence[str]]]:
        return {"class": self.labelled.prompts}

    @property
    def size(self) -> int:
        return len(self.labelled.prompts)

    @property
    def example(self) -> str:
        return ""

    @property
    def digest(self) -> str:
        return self.labelled.digest

    def answered(self, features: Features) -> Answered:
        classifier_CD, is_cut_C = features.classes("class")
        answers = classification(
            self.labelled, features.images(), classifier_CD, official=self.official
        )
        return Answered(answers=answers, num_cut=int(is_cut_C.sum()))


@dataclass(frozen=True)
class DataSetQuestion:
    """Retrieval by long and short captions, and what scenes can be asked."""

    about: About
    images: ShardImages
    benchmark: Benchmark
    official: bool = False

    @property
    def texts(self) -> Mapping[str, Sequence[str]]:
        if not self.official:
            return self.benchmark.texts
        return {
            name: [assemble_official(text) for text in texts]
            for name, texts in self.benchmark.texts.items()
        }

    @property
    def prompts(self) -> Mapping[str, Sequence[Sequence[str]]]:
        return self.benchmark.prompts

    @property
    def size(self) -> int:
        return len(self.benchmark.samples)

    @property
    def example(self) -> str:
        return self.texts["long"][0]

    @property
    def digest(self) -> str:
        return digest_of([*self.images.names], self.texts, self.prompts)

    def answered(self, features: Features) -> Answered:
        texts = {name: features.texts(name) for name in self.texts}
        answers = self.benchmark.answers(
            DataSetFeatures(
                image_ND=features.images(),
                **{f"{name}_ND": text_ND for name, (text_ND, _) in texts.items()},
                classes={task: features.classes(task)[0] for task in self.prompts},
            )
        )
        _, is_cut_N = texts["long"]
        return Answered(answers=answers, num_cut=int(is_cut_N.sum()))


@dataclass(frozen=True)
class ShardImages:
    """Images of samples, which lie in shards."""

    store: Store
    manifest: Manifest
    names: Sequence[str]
    """Keys."""
    versions: Sequence[str]
    """SHA-256 of each."""
    first: int = 0
    """The number of its first sample in the data set."""

    @property
    def where(self) -> str:
        return self.store.uri

    def read(self) -> list[bytes]:
        with closing(read_samples(self.store, self.manifest, start=self.first)) as samples:
            found = [sample.image for sample in islice(samples, len(self.names))]
        if [hashlib.sha256(image).hexdigest() for image in found] != [*self.versions]:
            raise DataError(f"{self.where} was changed while it was in use: start again")
        return found

    def part(self, start: int, stop: int) -> ShardImages:
        names, versions = self.names[start:stop], self.versions[start:stop]
        return replace(self, names=names, versions=versions, first=self.first + start)
