"""Recall of several captions an image, with ties and duplicates, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lotlip.data.store import FolderStore
from lotlip.errors import DataError
from lotlip.evaluate.published.measure import retrieval
from lotlip.evaluate.published.sets import Pairs, StoredImages
from lotlip.evaluate.retrieval import RECALL_AT, Ranks

WORDS = ("a castle", "a boat", "two trees", "a cat")


@st.composite
def benchmarks(draw: st.DrawFn) -> tuple[Pairs, torch.Tensor, torch.Tensor]:
    """A few images with one to three captions each; small whole numbers tie often."""
    num_images = draw(st.integers(1, 6))
    of_image = [image for image in range(num_images) for _ in range(draw(st.integers(1, 3)))]
    texts = [draw(st.sampled_from(WORDS)) for _ in of_image]
    numbers = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
    image_ND = torch.tensor([draw(numbers) for _ in range(num_images)]).float()
    text_TD = torch.tensor([draw(numbers) for _ in of_image]).float()
    names = [str(image) for image in range(num_images)]
    return (
        Pairs(StoredImages(FolderStore("."), names, names), texts, of_image, names),
        image_ND,
        text_TD,
    )


@settings(max_examples=200, deadline=None)
@given(benchmarks(), st.booleans())
def test_recall_is_that_of_counting_by_hand(
    benchmark: tuple[Pairs, torch.Tensor, torch.Tensor], official: bool
):
    pairs, image_ND, text_TD = benchmark
    scores = (text_TD @ image_ND.T).tolist()
    num_images, num_texts = len(image_ND), len(text_TD)

    def is_right(text: int, image: int) -> bool:
        own = [t for t in range(num_texts) if pairs.image_of_T[t] == image]
        if official:
            return text in own
        return any(pairs.texts[t] == pairs.texts[text] for t in own)

    def rank(of_query: list[float], is_right: list[bool]) -> int:
        """By sorting; of equal scores the first stands first, or those that are wrong do."""
        places = range(len(of_query))
        order = sorted(places, key=lambda p: (-of_query[p], p if official else is_right[p]))
        return 1 + next(at for at, place in enumerate(order) if is_right[place])

    images, texts = range(num_images), range(num_texts)
    to_image = [rank(scores[t], [is_right(t, i) for i in images]) for t in texts]
    to_text = [rank([scores[t][i] for t in texts], [is_right(t, i) for t in texts]) for i in images]

    answers, told = retrieval(pairs, image_ND, text_TD, official=official, by_length=True)
    for k in RECALL_AT:
        for name, ranks in (("text_to_image", to_image), ("image_to_text", to_text)):
            assert answers[f"{name}_r{k}"].hits_Q.tolist() == [rank <= k for rank in ranks]
    assert told["text_to_image"].ranks_Q.tolist() == to_image
    assert told["text_to_image"].median().value == sorted(to_image)[(num_texts - 1) // 2]
    assert answers["words_0_49_text_to_image_r1"].hits_Q.tolist() == [r <= 1 for r in to_image]


def test_captions_are_told_apart_by_their_length():
    texts = ["word " * number for number in (1, 49, 50, 199, 200, 999)]
    names = [str(n) for n in range(6)]
    pairs = Pairs(StoredImages(FolderStore("."), names, names), texts, range(6), names)
    features = torch.eye(6)
    features[3] = 1 / 6**0.5  # that of 199 words says nothing
    answers, _ = retrieval(pairs, torch.eye(6), features, official=False, by_length=True)
    found = {n: a.hits_Q.tolist() for n, a in answers.items() if n.startswith("words")}
    assert found == {
        "words_0_49_text_to_image_r1": [1, 1],
        "words_50_99_text_to_image_r1": [1],
        "words_150_199_text_to_image_r1": [0],
        "words_200_up_text_to_image_r1": [1, 1],
    }


def test_the_interval_of_a_median_holds_what_resampling_gives():
    assert Ranks(np.array([1] * 60 + [5] * 40)).median().value == 1
    wide = Ranks(np.array([1, 2, 3, 4, 100])).median()
    assert (wide.value, wide.low, wide.high) == (3, 1, 100)
    together = Ranks(np.repeat([1, 9], 50), np.repeat([0, 1], 50)).median()
    assert (together.low, together.high) == (1, 9)
    apart = Ranks(np.repeat([1, 9], 50)).median()
    assert apart.value == 1
    with pytest.raises(DataError, match="one or more ranks"):
        Ranks(np.array([]))


def test_medians_of_two_models_are_compared_in_pairs():
    rng = np.random.default_rng(0)
    first = rng.integers(1, 1000, size=400)
    worse = Ranks(first + 7).beyond(Ranks(first))
    assert (worse.value, worse.low, worse.high) == (7, 7, 7), "however much the ranks differ"
    alike = Ranks(rng.permutation(first)).beyond(Ranks(first))
    assert alike.value == 0
    assert alike.low < 0 < alike.high
    with pytest.raises(DataError, match="different queries"):
        Ranks(first).beyond(Ranks(first[1:]))
    with pytest.raises(DataError, match="different queries"):
        Ranks(first).beyond(Ranks(first, np.arange(400) // 2))
