"""A question to a model in pieces: what is embedded and kept together, and what comes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lotlip.evaluate.encoders import Encoder
from lotlip.evaluate.published.measure import Asked, Result
from lotlip.evaluate.published.suite import Protocol
from lotlip.evaluate.questions import WHOLE, Question
from lotlip_platform.embeddings import (
    FeatureCache,
    Piece,
    Reading,
    class_pieces,
    image_pieces,
    text_pieces,
)


@dataclass(frozen=True, kw_only=True)
class Put:
    """A question as it is put to a model."""

    benchmark: str
    protocol: Protocol
    context_length: int
    """Tokens that this model reads at most."""
    splits_sentences: bool
    """See `Encoder`."""
    question: Question
    images: Sequence[Piece]
    texts: Mapping[str, Sequence[Piece]]
    classes: Mapping[str, Sequence[Piece]]

    def pieces(self) -> Iterator[Piece]:
        """All that is to be embedded."""
        yield from self.images
        for pieces in (*self.texts.values(), *self.classes.values()):
            yield from pieces


def put(question: Question, benchmark: str, protocol: Protocol, encoder: Encoder) -> Put:
    """To a model."""
    context_length = min(protocol.context_length, encoder.longest_text)
    reading = Reading(context_length=context_length, official=protocol.official)
    return Put(
        benchmark=benchmark,
        protocol=protocol,
        context_length=context_length,
        splits_sentences=encoder.splits_sentences,
        question=question,
        images=image_pieces(question.images),
        texts={name: text_pieces(texts, reading) for name, texts in question.texts.items()},
        classes={name: class_pieces(some, reading) for name, some in question.prompts.items()},
    )


def answer(cache: FeatureCache, asked: Put) -> Result:
    """Of features that are there. Raises: DataError."""
    kept = _Kept(cache, asked)
    answered, texts = asked.question.answered(kept), asked.question.texts
    about = Asked(
        benchmark=asked.benchmark,
        about=asked.question.about,
        protocol=asked.protocol,
        context_length=asked.context_length,
        num_images=len(asked.question.images.names),
        num_texts=asked.question.size,
        digest=asked.question.digest,
        images_digest=kept.images_digest,
        num_cut=answered.num_cut,
        num_blank=sum(not text.strip() for name in WHOLE for text in texts.get(name, ())),
        splits_sentences=asked.splits_sentences,
    )
    return Result(asked=about, answered=answered)


class _Kept:
    """`Features` that are in a cache."""

    def __init__(self, cache: FeatureCache, asked: Put) -> None:
        self._cache, self._asked = cache, asked
        self.images_digest = ""

    def images(self) -> Tensor:
        found = self._cache.features(self._asked.images)
        self.images_digest = hashlib.sha256(found.sums).hexdigest()
        return found.features

    def texts(self, name: str) -> tuple[Tensor, Tensor]:
        found = self._cache.features(self._asked.texts[name])
        return found.features, found.is_cut

    def classes(self, name: str) -> tuple[Tensor, Tensor]:
        found = self._cache.features(self._asked.classes[name])
        return found.features, found.is_cut
