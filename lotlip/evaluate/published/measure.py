"""What a model achieves on a published benchmark, of the features of its images and texts.

Shape suffixes: N images, T texts, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lotlip.captions import split_sentences
from lotlip.evaluate.published.sets import Labelled, Pairs
from lotlip.evaluate.published.suite import About, Protocol
from lotlip.evaluate.ranks import Right, ranks_both_ways, retrieval_ranks
from lotlip.evaluate.retrieval import RECALL_AT, Answers, Interval, Ranks, answers_at
from lotlip.evaluate.zero_shot import zero_shot_answers

CHANGES_OF_THE_WHOLE = ("headless", "moved")
"""Of `variants_of`."""
SENTENCES = 6
"""Sentences that are tried one by one; 8 to 12 are in a long caption, the first tell most."""
_WORDS = (0, 50, 100, 150, 200)
"""Where buckets of captions begin, by their length in words: the same for all models."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked of a model, and how."""

    benchmark: str
    about: About
    protocol: Protocol
    context_length: int
    """Tokens of a text that this model read at most; see `Protocol.context_length`."""
    num_images: int
    num_texts: int
    digest: str
    """Of texts and names of images: two results with the same one are of the same questions."""
    images_digest: str
    """Of the images' bytes."""
    num_cut: int
    """Texts, or classes by their prompts, that were longer than that."""
    num_blank: int
    """Texts without a word."""
    splits_sentences: bool
    """Whether the model's tokenizer heeds the protocol."""

    @property
    def how(self) -> str:
        """The protocol, with what this model read of it: what figures are compared by."""
        return f"{self.protocol.name}, {self.context_length} tokens"

    @property
    def rules(self) -> str:
        """What the protocol does to texts, and how it counts."""
        official, rules = self.protocol.official, []
        if official and self.about.quirk:
            rules.append(self.about.quirk)
        if official and not self.splits_sentences:
            rules.append("read by the model's own tokenizer")
        if official and self.about.kind != "data":
            rules.append("of equal scores the first wins")
        else:
            same = "classes of equal names" if self.about.kind == "classes" else "equal texts"
            rules.append(f"{same} are right for each other's images, ties count against the model")
        return "; ".join(rules)

    @property
    def is_part(self) -> bool:
        """Whether not all of the benchmark was there."""
        return (self.num_images, self.num_texts) != (self.about.num_images, self.about.num_texts)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A model's answers to a benchmark."""

    answers: Mapping[str, Answers]
    """By names such as `text_to_image_r1`."""
    ranks: Mapping[str, Ranks] = field(default_factory=dict)
    """By names such as `text_to_image`."""
    changes: Mapping[str, Interval] = field(default_factory=dict)
    """What is lost, or won, by changed texts against the same ones as they are, in pairs."""
    num_cut: int = 0
    """See `Asked`."""

    @cached_property
    def shares(self) -> dict[str, Interval]:
        """Shares from 0 to 1 with their 95% intervals."""
        return {name: answers.interval() for name, answers in self.answers.items()}

    @cached_property
    def medians(self) -> dict[str, Interval]:
        """Median ranks by names such as `text_to_image_median_rank`."""
        return {_median(name): ranks.median() for name, ranks in self.ranks.items()}

    def beyond(self, other: Answered) -> dict[str, Interval]:
        """Shares and medians less another model's, in pairs, of what both were asked alike."""
        differences = {
            name: answers.beyond(other.answers[name])
            for name, answers in self.answers.items()
            if name in other.answers and answers.are_of_the_same(other.answers[name])
        }
        return differences | {
            _median(name): ranks.beyond(other.ranks[name]) for name, ranks in self.ranks.items()
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was asked, and what was answered."""

    asked: Asked
    answered: Answered


def variants_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """A long benchmark's texts changed so as to show which of their sentences a model uses.

    The first sentence of a long caption tends to sum it up, and a model that goes by it alone is
    short-sighted (arXiv 2602.22419). `headless` lacks it, `moved` has it at the end, `sentence_2`
    is the second one alone. A text that can't be changed so is left out: it is empty.
    """
    sentences = [split_sentences(text) for text in texts]
    several = [of_text if len(of_text) > 1 else [] for of_text in sentences]
    changed = {
        "headless": [" ".join(of_text[1:]) for of_text in several],
        "moved": [" ".join([*of_text[1:], *of_text[:1]]) for of_text in several],
    }
    for place in range(SENTENCES):
        changed[f"sentence_{place + 1}"] = ["".join(s[place : place + 1]) for s in sentences]
    return changed


def retrieval(
    pairs: Pairs, image_ND: Tensor, text_TD: Tensor, *, official: bool, by_length: bool
) -> tuple[dict[str, Answers], dict[str, Ranks]]:
    """Recall and ranks both ways.

    Args:
        official: only the image that a text was written for is right, and of equal scores the first
            one wins, as the authors count. Otherwise an image that has an equal text is right, too,
            and ties count against the model.
        by_length: tell recall by the length of the texts, too.
    """
    right = _own_images(pairs) if official else _described_images(pairs.texts, pairs)
    to_image, to_text = ranks_both_ways(text_TD, image_ND, right, first_wins=official)
    of_image = np.asarray(pairs.image_of_T)
    answers = {f"image_to_text_r{k}": answers_at(to_text, k) for k in RECALL_AT}
    answers |= {
        f"text_to_image_r{k}": answers_at(to_image, k, clusters=of_image) for k in RECALL_AT
    }
    ranks = {
        "image_to_text": Ranks(to_text.numpy()),
        "text_to_image": Ranks(to_image.numpy(), of_image),
    }
    if by_length:
        lengths = np.array([len(text.split()) for text in pairs.texts])
        for low, high in zip(_WORDS, [*_WORDS[1:], 0], strict=True):
            chosen = (lengths >= low) & ((lengths < high) if high else True)
            if chosen.any():
                name = f"words_{low}_{high - 1}" if high else f"words_{low}_up"
                hits = answers_at(to_image[torch.from_numpy(chosen)], 1, clusters=of_image[chosen])
                answers[f"{name}_text_to_image_r1"] = hits
    return answers, ranks


def variant_retrieval(
    pairs: Pairs,
    variant: Sequence[str],
    is_asked_T: Tensor,
    image_ND: Tensor,
    text_PD: Tensor,
    whole: Answers,
) -> tuple[Answers, Interval] | None:
    """Whether changed texts still find their images first, and how much less often than `whole`.

    `text_PD` are the features of those that are not empty, in their order. Only the `is_asked_T`
    are asked, but an image is right by any of its texts. None if nothing is left.
    """
    there = torch.tensor([place for place, text in enumerate(variant) if text], dtype=torch.int64)
    is_asked_P = is_asked_T[there]
    chosen = there[is_asked_P].tolist()
    if not chosen:
        return None
    right = _described_images(variant, pairs, chosen)
    ranks = retrieval_ranks(text_PD[is_asked_P], image_ND, right)
    clusters = np.asarray(pairs.image_of_T)[chosen]
    found = answers_at(ranks, 1, clusters=clusters)
    return found, found.beyond(Answers(whole.hits_Q[chosen], clusters))


def classification(
    labelled: Labelled, image_ND: Tensor, classifier_CD: Tensor, *, official: bool
) -> dict[str, Answers]:
    """Accuracy `top1` and `top5`.

    Classes of equal names, as ImageNet's two missiles, are right for each other's images;
    `official` has the first of them win, so that images of the second are always wrong.
    """
    first: dict[tuple[str, ...], int] = {}
    first_C = torch.tensor(
        [first.setdefault(tuple(prompts), place) for place, prompts in enumerate(labelled.prompts)]
    )
    return zero_shot_answers(
        # Equal prompts in other batches may differ in their last bits.
        *(image_ND, classifier_CD[first_C], torch.tensor([*labelled.labels])),
        same_C=None if official else first_C,
        first_wins=official,
    )


def _own_images(pairs: Pairs) -> Right:
    """For each text the image that it was written for is right."""
    return torch.tensor([*pairs.image_of_T]), torch.arange(len(pairs.images.names))


def _described_images(
    texts: Sequence[str], pairs: Pairs, asked: Sequence[int] | None = None
) -> Right:
    """For each text, or those at some places, all images that have an equal one are right.

    One without a word says of no other image what it doesn't say of its own.
    """
    with_text: dict[str, list[int]] = {}
    for text, image in zip(texts, pairs.image_of_T, strict=True):
        with_text.setdefault(_normal(text), []).append(image)
    places = range(len(texts)) if asked is None else asked
    images = [
        with_text[_normal(texts[place])] if texts[place].strip() else [pairs.image_of_T[place]]
        for place in places
    ]
    return _mask_of(images, len(pairs.images.names))


def _mask_of(images: Sequence[Sequence[int]], num_images: int) -> Callable[[int, int], Tensor]:
    def mask(start: int, stop: int) -> Tensor:
        rows = images[start:stop]
        right = torch.zeros(len(rows), num_images, dtype=torch.bool)
        row = [number for number, of_text in enumerate(rows) for _ in of_text]
        right[row, [image for of_text in rows for image in of_text]] = True
        return right

    return mask


def _median(name: str) -> str:
    return f"{name}_median_rank"


def _normal(text: str) -> str:
    return " ".join(text.split())
