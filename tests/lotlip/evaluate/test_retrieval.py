from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from lotlip.errors import ConfigError, DataError
from lotlip.evaluate.ranks import _Scores, ranks_both_ways, retrieval_ranks
from lotlip.evaluate.retrieval import (
    Answers,
    Interval,
    answers_at,
    bootstrap,
    retrieval_answers,
)


def paired_report(image, text, of=None):
    """Text i belongs to image of[i], by default to image i."""
    labels = torch.arange(len(text)) if of is None else of
    return report(image, text, torch.arange(len(image)), labels)


def report(image, text, image_labels, text_labels):
    answers = retrieval_answers(image, text, image_labels_N=image_labels, text_labels_T=text_labels)
    return {name: one.interval() for name, one in answers.items()}


def slow_ranks(query, item, right, first_wins=False):
    """The definition: sort by falling score, of equal ones wrong before right, or as they stand;
    find the first right item."""
    ranks = []
    for index, feature in enumerate(query):
        scores = [sum(a * b for a, b in zip(feature, other, strict=True)) for other in item]
        tie = range(len(item)) if first_wins else right[index]
        order = sorted(range(len(item)), key=lambda n: (-scores[n], tie[n]))
        ranks.append(1 + next(place for place, n in enumerate(order) if right[index][n]))
    return ranks


@st.composite
def labelled_features(draw):
    width, num_labels = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    row = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
    items = draw(st.lists(row, min_size=num_labels, max_size=9))
    queries = draw(st.lists(row, max_size=9))
    label = st.integers(0, num_labels - 1)
    item_labels = [*range(num_labels), *(draw(label) for _ in items[num_labels:])]
    query_labels = [draw(label) for _ in queries]
    return (
        torch.tensor(queries, dtype=torch.float32).reshape(-1, width),
        torch.tensor(items, dtype=torch.float32),
        torch.tensor(query_labels, dtype=torch.int64),
        torch.tensor(item_labels, dtype=torch.int64),
    )


@given(labelled_features(), st.integers(1, 10), st.booleans())
@settings(deadline=None, max_examples=300)
def test_ranks_equal_the_definition_with_many_ties_and_duplicates(case, chunk, first_wins):
    query, item, query_labels, item_labels = case
    right = query_labels[:, None] == item_labels[None, :]
    want = slow_ranks(query.tolist(), item.tolist(), right.tolist(), first_wins)
    labels, how = (query_labels, item_labels), {"chunk": chunk, "first_wins": first_wins}
    by_labels = retrieval_ranks(query, item, labels, **how)
    by_mask = retrieval_ranks(query, item, lambda start, stop: right[start:stop], **how)
    assert by_labels.dtype == torch.int64
    assert by_labels.tolist() == by_mask.tolist() == want


@given(labelled_features(), st.integers(1, 10), st.booleans())
@settings(deadline=None, max_examples=200)
def test_both_ways_at_once_give_the_ranks_of_each(case, chunk, first_wins):
    query, item, query_labels, item_labels = case
    assume(len(query) > 0)
    assume(set(item_labels.tolist()) <= set(query_labels.tolist()))
    how, labels = {"first_wins": first_wins}, (query_labels, item_labels)
    there, back = ranks_both_ways(query, item, labels, chunk=chunk, **how)
    assert torch.equal(there, retrieval_ranks(query, item, labels, **how))
    assert torch.equal(back, retrieval_ranks(item, query, labels[::-1], **how))


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4, 1e-6, 0.0])
def test_features_that_nearly_agree_rank_as_their_exact_scores_say(spread):
    """The nearer they are, the more pairs single precision cannot decide."""
    generator = torch.Generator().manual_seed(6)
    middle = torch.randn(1, 96, generator=generator)
    query, item = (
        normalize(middle + spread * torch.randn(150, 96, generator=generator), dim=1)
        for _ in range(2)
    )
    labels = torch.arange(150) // 2
    fixed_q, fixed_i = ((2.0**25 * side.double()).round() for side in (query, item))
    scores = fixed_q @ fixed_i.T
    right = labels[:, None] == labels[None, :]
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    want = 1 + ((scores >= best) & ~right).sum(dim=1)
    there, back = ranks_both_ways(query, item, (labels, labels), chunk=64)
    assert torch.equal(there, want)
    assert torch.equal(back, retrieval_ranks(item, query, (labels, labels), chunk=150))


def test_products_of_lower_precision_are_not_relied_on():
    query, item = torch.randn(2, 90, 16, generator=torch.Generator().manual_seed(8))
    labels = torch.arange(90)
    ranks = retrieval_ranks(query, item, (labels, labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(retrieval_ranks(query, item, (labels, labels)), ranks)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert _Scores(query, item).rough(slice(0, 9)).dtype == torch.float64
        assert torch.equal(retrieval_ranks(query, item, (labels, labels)), ranks)
    finally:
        torch.set_float32_matmul_precision(before)


@given(labelled_features(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_items_has_no_influence(case, random):
    query, item, query_labels, item_labels = case
    order = list(range(len(item)))
    random.shuffle(order)
    ranks = retrieval_ranks(query, item, (query_labels, item_labels))
    shuffled = retrieval_ranks(query, item[order], (query_labels, item_labels[order]))
    assert torch.equal(ranks, shuffled)


def test_a_hand_computed_case():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    item = torch.tensor([[3.0, 0.0], [2.0, 2.0], [2.0, 1.0], [0.0, 2.0]])
    # scores: [3 2 2 0], [0 2 1 2], [3 4 3 2]
    labels = (torch.tensor([2, 3, 0]), torch.arange(4))
    assert retrieval_ranks(query, item, labels).tolist() == [3, 2, 3]
    assert retrieval_ranks(query, item, (labels[0], torch.tensor([0, 3, 2, 3]))).tolist() == [
        3,
        1,
        3,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_constant_model_gets_the_worst_ranks(dtype):
    feature = normalize(torch.randn(1, 65, generator=torch.Generator().manual_seed(0)))
    constant = feature.to(dtype).repeat(37, 1)
    labels = torch.arange(37)
    assert retrieval_ranks(constant, constant, (labels, labels)).tolist() == [37] * 37


def test_real_features_rank_the_same_in_every_chunk_and_tie_with_their_copies():
    generator = torch.Generator().manual_seed(1)
    item = normalize(torch.randn(101, 129, generator=generator), dim=1)
    query = normalize(item + 0.2 * torch.randn(101, 129, generator=generator), dim=1)
    labels = torch.arange(101)
    ranks = retrieval_ranks(query, item, (labels, labels), chunk=101)
    for chunk in (1, 7, 64):
        assert torch.equal(retrieval_ranks(query, item, (labels, labels), chunk=chunk), ranks)
    doubled = torch.cat([item, item])
    both_right = retrieval_ranks(query, doubled, (labels, torch.cat([labels, labels])))
    copy_wrong = retrieval_ranks(query, doubled, (labels, torch.cat([labels, labels + 101])))
    assert torch.equal(both_right, 2 * ranks - 1)
    assert torch.equal(copy_wrong, 2 * ranks)


def test_sums_are_exact_so_the_order_of_summation_makes_no_difference():
    generator = torch.Generator().manual_seed(4)
    feature = normalize(torch.randn(768, generator=generator), dim=0)
    item = torch.stack([feature[torch.randperm(768, generator=generator)] for _ in range(50)])
    query = torch.full((50, 768), 768**-0.5)  # scores are sums of the same numbers in another order
    labels = torch.arange(50)
    assert retrieval_ranks(query, item, (labels, labels)).tolist() == [50] * 50


def test_ranks_agree_with_float64_products():
    generator = torch.Generator().manual_seed(2)
    query, item = torch.randn(2, 200, 64, generator=generator)
    labels = torch.arange(200)
    scores = query.double() @ item.double().T
    want = 1 + (scores > scores.diagonal()[:, None]).sum(dim=1)
    assert torch.equal(retrieval_ranks(query, item, (labels, labels)), want)


def test_very_small_and_very_large_features_keep_their_ranks():
    query, item = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(20)
    ranks = retrieval_ranks(query, item, (labels, labels))
    assert torch.equal(retrieval_ranks(query * 2.0**-90, item * 2.0**100, (labels, labels)), ranks)


def test_a_query_without_a_right_item_is_an_error_with_its_index():
    features = torch.eye(5)
    labels = (torch.tensor([0, 1, 2, 9, 4]), torch.arange(5))
    with pytest.raises(DataError, match="query 3 has no right item"):
        retrieval_ranks(features, features, labels, chunk=2)
    with pytest.raises(DataError, match="query 0 has no right item"):
        retrieval_ranks(features, features[:0], (torch.arange(5), torch.arange(0)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_feature_that_is_not_finite_is_an_error(value):
    good, bad = torch.eye(3), torch.eye(3)
    bad[1, 2] = value
    labels = (torch.arange(3), torch.arange(3))
    with pytest.raises(DataError, match="query 1 are not finite"):
        retrieval_ranks(bad, good, labels)
    with pytest.raises(DataError, match="item 1 are not finite"):
        retrieval_ranks(good, bad, labels)


def test_wrong_shapes_are_errors():
    labels = (torch.arange(3), torch.arange(3))
    with pytest.raises(DataError, match="one width"):
        retrieval_ranks(torch.eye(3), torch.ones(3, 4), labels)
    with pytest.raises(DataError, match="need a label each"):
        retrieval_ranks(torch.eye(3), torch.eye(3), (torch.arange(2), torch.arange(3)))
    with pytest.raises(DataError, match="boolean mask"):
        retrieval_ranks(torch.eye(3), torch.eye(3), lambda start, stop: torch.ones(3, 2).bool())
    with pytest.raises(ConfigError, match="chunk"):
        retrieval_ranks(torch.eye(3), torch.eye(3), labels, chunk=0)


def test_recall_counts_ranks_up_to_k():
    ranks = torch.tensor([1, 2, 5, 6, 11])
    assert [answers_at(ranks, k).interval().value for k in (1, 5, 10)] == pytest.approx(
        [0.2, 0.6, 0.8]
    )


def test_all_hits_have_an_interval_without_width():
    assert answers_at(torch.ones(7, dtype=torch.int64), 1).interval() == Interval(1.0, 1.0, 1.0)
    assert bootstrap(np.full(9, 0.1)).low == bootstrap(np.full(9, 0.1)).value


def test_the_bootstrap_interval_is_that_of_the_normal_approximation():
    hits = np.repeat([1.0, 0.0], [300, 700])
    interval = bootstrap(hits, num_resamples=4000)
    error = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert interval.value == 0.3
    assert interval.low == pytest.approx(0.3 - error, abs=0.004)
    assert interval.high == pytest.approx(0.3 + error, abs=0.004)
    values = np.random.default_rng(0).normal(size=2000)
    interval = bootstrap(values, num_resamples=4000, level=0.9)
    error = 1.645 * values.std() / np.sqrt(2000)
    assert interval.low == pytest.approx(values.mean() - error, abs=0.004)
    assert interval.high == pytest.approx(values.mean() + error, abs=0.004)


def test_about_95_of_100_intervals_hold_the_true_mean():
    rng = np.random.default_rng(0)
    intervals = [bootstrap(rng.random(200) < 0.4, seed=seed) for seed in range(300)]
    held = np.mean([interval.low <= 0.4 <= interval.high for interval in intervals])
    assert 0.90 <= held <= 0.98


def test_a_difference_is_measured_on_the_same_queries():
    rng = np.random.default_rng(0)
    theirs = (rng.random(400) < 0.6).astype(float)
    ours = np.where(rng.random(400) < 0.1, 1.0, theirs)  # better in some, worse in none
    better, worse = Answers(ours), Answers(theirs)
    found = better.beyond(worse)
    assert found.value == pytest.approx(better.interval().value - worse.interval().value)
    assert found.low > 0  # though the intervals of the two overlap
    assert better.interval().low < worse.interval().high
    back = worse.beyond(better)
    assert back.value == -found.value
    assert back.high == pytest.approx(-found.low, abs=0.01)
    assert better.beyond(better) == Interval(0.0, 0.0, 0.0)
    with pytest.raises(DataError, match="400 and 3 queries"):
        better.beyond(Answers(np.ones(3)))


def test_a_difference_draws_clusters_together():
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 2, (2, 50)).astype(float)
    copied = Answers(ours.repeat(4), np.arange(50).repeat(4))
    assert copied.beyond(Answers(theirs.repeat(4))) == Answers(ours).beyond(Answers(theirs))


def test_the_interval_shrinks_with_the_number_of_items():
    widths = [
        (interval := bootstrap(np.tile([0.0, 1.0], n))).high - interval.low for n in (10, 100, 1000)
    ]
    assert widths[0] > 2 * widths[1] > 4 * widths[2] > 0


def test_the_bootstrap_depends_on_the_seed_but_not_on_the_order():
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values, seed=1) == bootstrap(values[::-1], seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_items_of_a_cluster_are_drawn_together():
    hits = np.repeat(np.tile([0.0, 1.0], 50), 5)
    alone = bootstrap(np.tile([0.0, 1.0], 50))
    assert bootstrap(hits, clusters=np.repeat(np.arange(100), 5)) == alone
    assert bootstrap(hits).high < alone.high
    uneven = bootstrap(np.array([1.0, 1.0, 1.0, 0.0]), clusters=np.array([4, 4, 4, 2]))
    assert (uneven.value, uneven.low, uneven.high) == (0.75, 0.0, 1.0)


def test_an_interval_of_nothing_or_of_nan_is_an_error():
    for values in (np.array([]), np.array([1.0, np.nan]), np.ones((2, 2))):
        with pytest.raises(DataError, match="finite values"):
            bootstrap(values)
    with pytest.raises(DataError, match="cluster numbers"):
        bootstrap(np.ones(3), clusters=np.arange(2))
    with pytest.raises(ConfigError):
        bootstrap(np.ones(3), level=1.0)


def test_the_report_of_one_text_an_image():
    image = torch.eye(12)
    text = image.roll(1, dims=0)  # text i is image i - 1: every right pair scores 0
    report = paired_report(image, text)
    assert list(report) == [
        *(f"image_to_text_r{k}" for k in (1, 5, 10)),
        *(f"text_to_image_r{k}" for k in (1, 5, 10)),
    ]
    assert all(interval == Interval(0.0, 0.0, 0.0) for interval in report.values())
    assert all(i == Interval(1.0, 1.0, 1.0) for i in paired_report(image, image).values())


def test_the_report_of_several_texts_an_image():
    image = torch.eye(3)
    text = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0.5, 0, 0.4]])
    report = paired_report(image, text, torch.tensor([0, 0, 1, 2, 2]))
    # image 1: its text 2 ties with text 1 of image 0; text 1 finds image 1, text 4 finds image 0
    assert report["image_to_text_r1"].value == pytest.approx(2 / 3)
    assert report["text_to_image_r1"].value == pytest.approx(3 / 5)
    assert report["text_to_image_r5"] == report["image_to_text_r5"] == Interval(1.0, 1.0, 1.0)


def test_copies_of_the_captions_do_not_narrow_the_interval_of_a_report():
    generator = torch.Generator().manual_seed(5)
    image, text = torch.randn(2, 40, 3, generator=generator)
    text += image
    once = paired_report(image, text)
    index = torch.arange(40).repeat(4)
    copied = paired_report(image, text.repeat(4, 1), index)
    assert 0 < once["text_to_image_r1"].value < 1
    assert copied["text_to_image_r1"] == once["text_to_image_r1"]


def test_an_image_without_a_text_is_an_error():
    with pytest.raises(DataError, match="query 2 has no right item"):
        paired_report(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 1]))


def test_a_caption_that_two_images_share_is_right_for_both():
    image = torch.eye(3)
    text = torch.eye(3)[[1, 0, 2]]  # captions 0 and 1 each find the other's image
    labels = torch.tensor([7, 7, 8])
    shared = report(image, text, labels, labels)
    assert shared["text_to_image_r1"] == shared["image_to_text_r1"] == Interval(1.0, 1.0, 1.0)
    assert paired_report(image, text)["text_to_image_r1"].value == pytest.approx(1 / 3)
