"""A published benchmark as a question to a model: what is embedded, and what comes of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True, kw_only=True)
class Question:
    """A benchmark under a protocol, for a model that reads so many tokens."""

    benchmark: str
    protocol: Protocol
    context_length: int
    splits_sentences: bool
    """See `Encoder`."""
    found: Pairs | Labelled
    images: Sequence[Piece]
    texts: Sequence[Piece]
    """Or classes."""
    variants: Mapping[str, tuple[Sequence[str], Sequence[Piece]]] = field(default_factory=dict)
    """Changed texts of a long benchmark, and those of them that are not empty."""

    def pieces(self) -> Iterator[Piece]:
        """All that is to be embedded."""
        yield from self.images
        yield from self.texts
        for _, pieces in self.variants.values():
            yield from pieces


def question(
    found: Pairs | Labelled, benchmark: str, protocol: Protocol, encoder: Encoder
) -> Question:
    """Of a benchmark that was read for this protocol."""
    context_length = min(protocol.context_length, encoder.longest_text)
    reading = Reading(context_length=context_length, official=protocol.official)
    variants = {}
    if isinstance(found, Pairs):
        texts = text_pieces(found.texts, reading)
        if PUBLISHED[benchmark].kind == "long" and not protocol.official:
            variants = {
                name: (changed, text_pieces([text for text in changed if text], reading))
                for name, changed in variants_of(found.texts).items()
                if any(changed)
            }
    else:
        texts = class_pieces(found.prompts, reading)
    return Question(
        benchmark=benchmark,
        protocol=protocol,
        context_length=context_length,
        splits_sentences=encoder.splits_sentences,
        found=found,
        images=image_pieces(found.images),
        texts=texts,
        variants=variants,
    )


def answer(cache: FeatureCache, asked: Question) -> Result:
    """Of features that are there. Raises: DataError.

    Beside those of the images and the texts one kind of changed texts is in memory.
    """
    found = asked.found
    answers: dict[str, Answers] = {}
    medians: dict[str, Interval] = {}
    changes: dict[str, Interval] = {}
    image_ND, _ = cache.features(asked.images)
    text_TD, is_cut_T = cache.features(asked.texts)
    if isinstance(found, Pairs):
        answers, medians = retrieval(
            found,
            image_ND,
            text_TD,
            duplicates=not asked.protocol.official,
            by_length=bool(asked.variants),
        )
        whole = answers["text_to_image_r1"]
        for name, (changed, pieces) in asked.variants.items():
            text_PD, _ = cache.features(pieces)
            left = variant_retrieval(found, changed, ~is_cut_T, image_ND, text_PD, whole)
            if left is not None:
                answers[f"{name}_text_to_image_r1"], changes[name] = left
    else:
        answers = classification(found, image_ND, text_TD)
    about = Asked(
        benchmark=asked.benchmark,
        protocol=asked.protocol,
        context_length=asked.context_length,
        num_images=len(found.images.names),
        num_texts=len(found.texts if isinstance(found, Pairs) else found.prompts),
        digest=found.digest,
        num_cut=int(is_cut_T.sum()),
        splits_sentences=asked.splits_sentences,
    )
    return Result(asked=about, answers=answers, medians=medians, changes=changes)
