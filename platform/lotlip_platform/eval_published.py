"""A model on a published benchmark under a protocol."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lotlip.evaluate.encoders import Encoder
from lotlip.evaluate.published.measure import (
    Asked,
    Result,
    classification,
    retrieval,
    variant_retrieval,
    variants_of,
)
from lotlip.evaluate.published.sets import Labelled, Pairs
from lotlip.evaluate.published.suite import PUBLISHED, Protocol
from lotlip.evaluate.retrieval import Answers, Interval
from lotlip_platform.embeddings import (
    FeatureCache,
    Piece,
    Reading,
    class_pieces,
    image_pieces,
    text_pieces,
)

Told = Callable[[str, int, int], None]
"""Gets what is embedded, and how many of how many are."""


def answer(
    encoder: Encoder,
    cache: FeatureCache,
    found: Pairs | Labelled,
    benchmark: str,
    protocol: Protocol,
    told: Told,
) -> Result:
    """Put a model to a benchmark that was read for this protocol. Raises: LotlipError.

    Beside the features of the images and the texts one kind of changed texts is in memory.
    """
    context = min(protocol.context_length, encoder.longest_text)
    reading = Reading(context_length=context, official=protocol.official)
    questions = _Questions(cache, reading, f"{benchmark}, {protocol.name}", told)
    if isinstance(found, Pairs):
        answers, medians, num_cut = _retrieval(found, questions, benchmark, protocol)
        num_texts = len(found.texts)
    else:
        answers, num_cut = _classification(found, questions)
        medians, num_texts = {}, len(found.prompts)
    asked = Asked(
        benchmark=benchmark,
        protocol=protocol,
        context_length=context,
        num_images=len(found.images.names),
        num_texts=num_texts,
        digest=found.digest,
        num_cut=num_cut,
    )
    return Result(asked=asked, answers=answers, medians=medians)


class _Questions:
    """Features for one benchmark, with what is told of their making."""

    def __init__(self, cache: FeatureCache, reading: Reading, title: str, told: Told) -> None:
        self._cache, self.reading, self._title, self._told = cache, reading, title, told

    def features(self, pieces: list[Piece], what: str) -> tuple[Tensor, int]:
        """See `FeatureCache.features`."""
        return self._cache.features(
            pieces, lambda done, total: self._told(f"{self._title}: {what}", done, total)
        )


def _retrieval(
    pairs: Pairs, questions: _Questions, benchmark: str, protocol: Protocol
) -> tuple[dict[str, Answers], dict[str, Interval], int]:
    is_long = PUBLISHED[benchmark].kind == "long"
    image_ND, _ = questions.features(image_pieces(pairs.images), "images")
    text_TD, num_cut = questions.features(text_pieces(pairs.texts, questions.reading), "texts")
    answers, medians = retrieval(
        pairs, image_ND, text_TD, duplicates=not protocol.official, by_length=is_long
    )
    if is_long and not protocol.official:
        for name, texts in variants_of(pairs.texts).items():
            there = [text for text in texts if text]
            if not there:
                continue
            text_PD, _ = questions.features(text_pieces(there, questions.reading), name)
            found = variant_retrieval(pairs, texts, image_ND, text_PD)
            if found is not None:
                answers[f"{name}_text_to_image_r1"] = found
    return answers, medians, num_cut


def _classification(labelled: Labelled, questions: _Questions) -> tuple[dict[str, Answers], int]:
    image_ND, _ = questions.features(image_pieces(labelled.images), "images")
    prompts = class_pieces(labelled.prompts, questions.reading)
    classifier_CD, num_cut = questions.features(prompts, "classes")
    return classification(labelled, image_ND, classifier_CD), num_cut
