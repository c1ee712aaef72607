"""Image-text retrieval: ranks, recall and its bootstrap interval.

Shape suffixes: Q queries, N items (images in a report), T texts, D width, C queries of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lotlip.errors import ConfigError, DataError

Right = tuple[Tensor, Tensor] | Callable[[int, int], Tensor]
"""Which items are right for a query: labels (query [Q], item [N]; equal labels are right), or a
function that gives the boolean mask [stop - start, N] of the queries from `start` up to `stop`."""

RECALL_AT = (1, 5, 10)

_SCORE_BITS = 26  # two rows of length 2**26 have a dot product of at most 2**52: exact in float64
_WEIGHTS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def retrieval_ranks(query_QD: Tensor, item_ND: Tensor, right: Right, *, chunk: int = 256) -> Tensor:
    """The rank (1 = best) of the best right item of each query, int64 [Q].

    Ties count against the model: a wrong item that scores as high as the best right one stands
    before it, so a constant model gets the worst ranks and the order of the items has no influence.

    Scores are dot products of features rounded to 2**-26 of the longest row of their side. That is
    finer than a float32 product and makes every sum exact, so equal pairs tie whatever the chunk,
    the device or the order of summation.

    Args:
        query_QD: features, normally of length 1.
        item_ND: features; the scores are not normalised here.
        chunk: queries scored at once; memory grows with chunk x N.

    Raises: DataError if a feature is not finite or a query has no right item.
    """
    if chunk < 1:
        raise ConfigError(f"chunk must be at least 1, got {chunk}")
    _check_shapes(query_QD, item_ND)
    query_QD, item_ND = _fixed_point(query_QD, "query"), _fixed_point(item_ND, "item")
    right_of = right if callable(right) else _equal_labels(*right, query_QD, item_ND)
    ranks_Q = torch.empty(len(query_QD), dtype=torch.int64, device=query_QD.device)
    for start in range(0, len(query_QD), chunk):
        stop = min(start + chunk, len(query_QD))
        right_CN = right_of(start, stop).to(query_QD.device)
        if right_CN.shape != (stop - start, len(item_ND)) or right_CN.dtype != torch.bool:
            raise DataError(
                f"queries {start} to {stop}: the right items must be a boolean mask "
                f"[{stop - start}, {len(item_ND)}], got {right_CN.dtype} {list(right_CN.shape)}"
            )
        answered_C = right_CN.any(dim=1)
        if not answered_C.all():
            index = start + int(answered_C.logical_not().nonzero()[0])
            raise DataError(f"query {index} has no right item: remove it or mend its labels")
        scores_CN = query_QD[start:stop] @ item_ND.T
        best_C1 = scores_CN.masked_fill(~right_CN, -math.inf).amax(dim=1, keepdim=True)
        ranks_Q[start:stop] = 1 + ((scores_CN >= best_C1) & ~right_CN).sum(dim=1)
    return ranks_Q


def recall_at(ranks: Tensor, k: int, *, num_resamples: int = 1000, seed: int = 0) -> Interval:
    """The share of the queries with a right item among the first `k`, with its 95% interval."""
    return bootstrap(_hits(ranks, k), num_resamples=num_resamples, seed=seed)


def bootstrap(
    values_per_item: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The percentile bootstrap interval of the mean over items; their order has no influence.

    Where all values are equal the interval has no width, however few they are.

    Args:
        clusters: a number for each item. Items with the same number (the captions of an image) are
            not independent and are drawn together. Without it every item is drawn on its own.

    Raises: DataError if there is no value or one is not finite.
    """
    values = np.asarray(values_per_item, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise DataError(
            f"an interval needs one or more finite values, got an array {list(values.shape)}"
        )
    if num_resamples < 1 or not 0 < level < 1:
        raise ConfigError(
            f"bootstrap: num_resamples {num_resamples} or level {level} is out of range"
        )
    # Equal units are interchangeable, so we draw how often each distinct one occurs: for hits and
    # misses two numbers a resample instead of n, with the same distribution.
    units, times = np.unique(_sums_and_sizes(values, clusters), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // len(units))
    means = []
    for start in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - start)
        drawn = rng.multinomial(times.sum(), times / times.sum(), size=size) @ units
        means.append(drawn[:, 0] / drawn[:, 1])
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    total, size = times @ units
    return Interval(float(total / size), float(low), float(high))


def retrieval_report(
    image_ND: Tensor,
    text_TD: Tensor,
    *,
    image_labels_N: Tensor,
    text_labels_T: Tensor,
    num_resamples: int = 1000,
    seed: int = 0,
    chunk: int = 256,
) -> dict[str, Interval]:
    """Recall at 1, 5 and 10 both ways: `image_to_text_r1` … `text_to_image_r10`.

    An image and a text belong together if their labels are equal: number the images for several
    captions an image, or the distinct captions where one may describe several images. The
    intervals draw the texts of a label together.
    """
    to_text = retrieval_ranks(image_ND, text_TD, (image_labels_N, text_labels_T), chunk=chunk)
    to_image = retrieval_ranks(text_TD, image_ND, (text_labels_T, image_labels_N), chunk=chunk)
    clusters = text_labels_T.cpu().numpy()
    report = {}
    for k in RECALL_AT:
        report[f"image_to_text_r{k}"] = recall_at(
            to_text, k, num_resamples=num_resamples, seed=seed
        )
    for k in RECALL_AT:
        report[f"text_to_image_r{k}"] = bootstrap(
            _hits(to_image, k), clusters=clusters, num_resamples=num_resamples, seed=seed
        )
    return report


def _hits(ranks: Tensor, k: int) -> np.ndarray:
    if k < 1:
        raise ConfigError(f"recall at k needs k of at least 1, got {k}")
    return (ranks <= k).cpu().numpy().astype(np.float64)


def _sums_and_sizes(values: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    """What one draw adds to the total and to the number of items, [units, 2]."""
    if clusters is None:
        return np.stack([values, np.ones_like(values)], axis=1)
    if len(clusters) != len(values):
        raise DataError(f"bootstrap: {len(values)} values but {len(clusters)} cluster numbers")
    _, cluster = np.unique(clusters, return_inverse=True)
    return np.stack([np.bincount(cluster, values), np.bincount(cluster)], axis=1)


def _check_shapes(query_QD: Tensor, item_ND: Tensor) -> None:
    if query_QD.ndim != 2 or item_ND.ndim != 2 or query_QD.shape[1] != item_ND.shape[1]:
        raise DataError(
            "queries and items need features of one width, "
            f"got {list(query_QD.shape)} and {list(item_ND.shape)}"
        )


def _fixed_point(features_ND: Tensor, what: str) -> Tensor:
    """The features as whole numbers in float64, scaled so that the longest row is 2**26 at most."""
    wide_ND = features_ND.detach().double()
    length_N = torch.linalg.vector_norm(wide_ND, dim=1)
    if not length_N.isfinite().all():
        index = int(length_N.isfinite().logical_not().nonzero()[0])
        raise DataError(
            f"the features of {what} {index} are not finite: look at the model or its input"
        )
    _, exponent = math.frexp(float(length_N.max())) if len(length_N) else (0.0, 0)
    return (wide_ND * math.ldexp(1.0, _SCORE_BITS - exponent)).round()


def _equal_labels(
    query_labels: Tensor, item_labels: Tensor, query_QD: Tensor, item_ND: Tensor
) -> Callable[[int, int], Tensor]:
    query_Q, item_N = query_labels.to(query_QD.device), item_labels.to(query_QD.device)
    if query_Q.shape != (len(query_QD),) or item_N.shape != (len(item_ND),):
        raise DataError(
            f"{len(query_QD)} queries and {len(item_ND)} items need a label each, "
            f"got {list(query_Q.shape)} and {list(item_N.shape)}"
        )
    return lambda start, stop: query_Q[start:stop, None] == item_N[None, :]
