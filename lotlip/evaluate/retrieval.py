"""Image-text retrieval: which queries were answered right, and recall with its interval.

Shape suffixes: N images, T texts, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lotlip.errors import ConfigError, DataError
from lotlip.evaluate.ranks import ranks_both_ways

RECALL_AT = (1, 5, 10)

_WEIGHTS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A number and the ends of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Answers:
    """Which queries of a benchmark a model answers right, in the benchmark's order."""

    hits_Q: np.ndarray
    """1 for a right answer, 0 for a wrong one, [Q] float64."""
    clusters_Q: np.ndarray | None = None
    """As for `bootstrap`."""

    def interval(self, *, num_resamples: int = 1000, seed: int = 0) -> Interval:
        """The share of right answers, with its 95% interval."""
        return bootstrap(
            self.hits_Q, clusters=self.clusters_Q, num_resamples=num_resamples, seed=seed
        )

    def are_of_the_same(self, other: Answers) -> bool:
        """Whether the other ones are answers to the same queries, as far as can be told."""
        return len(self.hits_Q) == len(other.hits_Q) and _equal(self.clusters_Q, other.clusters_Q)

    def beyond(
        self, other: Answers, *, num_resamples: int = 1000, seed: int = 0, level: float = 0.95
    ) -> Interval:
        """This share less another model's on the same queries, by the paired bootstrap.

        Each resample draws queries, for both models the same. Raises: DataError if the queries are
        not the same number.
        """
        if len(self.hits_Q) != len(other.hits_Q):
            raise DataError(
                f"{len(self.hits_Q)} and {len(other.hits_Q)} queries can't be compared in pairs"
            )
        return bootstrap(
            self.hits_Q - other.hits_Q,
            clusters=self.clusters_Q,
            num_resamples=num_resamples,
            seed=seed,
            level=level,
        )


@dataclass(frozen=True)
class Ranks:
    """The rank of each query's best right item, 1 being the best, in the benchmark's order."""

    ranks_Q: np.ndarray
    """[Q] int64."""
    clusters_Q: np.ndarray | None = None
    """As for `bootstrap`."""

    def __post_init__(self) -> None:
        if self.ranks_Q.ndim != 1 or len(self.ranks_Q) == 0:
            raise DataError(
                f"a median needs one or more ranks, got an array {list(self.ranks_Q.shape)}"
            )

    def median(self, *, num_resamples: int = 1000, seed: int = 0) -> Interval:
        """The median, the lower one of two, with its 95% interval by the percentile bootstrap."""
        drawn = self._medians(num_resamples, seed)
        return _percentiles(_lower_median(self.ranks_Q), drawn)

    def beyond(self, other: Ranks, *, num_resamples: int = 1000, seed: int = 0) -> Interval:
        """This median less another model's on the same queries, by the paired bootstrap.

        Raises: DataError if the queries are not the same.
        """
        if len(self.ranks_Q) != len(other.ranks_Q) or not _equal(self.clusters_Q, other.clusters_Q):
            raise DataError("ranks of different queries can't be compared in pairs")
        drawn = self._medians(num_resamples, seed) - other._medians(num_resamples, seed)
        return _percentiles(_lower_median(self.ranks_Q) - _lower_median(other.ranks_Q), drawn)

    def _medians(self, num_resamples: int, seed: int) -> np.ndarray:
        """Of resamples; equal queries are drawn equally often for the same seed."""
        clusters = np.arange(len(self.ranks_Q)) if self.clusters_Q is None else self.clusters_Q
        _, cluster = np.unique(clusters, return_inverse=True)
        num_clusters = int(cluster.max()) + 1
        order = np.argsort(self.ranks_Q, kind="stable")
        in_order, of_item = self.ranks_Q[order], cluster[order]
        rng = np.random.default_rng(seed)
        medians = []
        for _ in range(num_resamples):
            drawn = rng.integers(num_clusters, size=num_clusters)
            times = np.bincount(drawn, minlength=num_clusters)[of_item].cumsum()
            medians.append(in_order[np.searchsorted(times, times[-1] / 2)])
        return np.array(medians)


def answers_at(ranks: Tensor, k: int, *, clusters: np.ndarray | None = None) -> Answers:
    """The queries that have a right item among the first `k`."""
    if k < 1:
        raise ConfigError(f"recall at k needs k of at least 1, got {k}")
    return Answers((ranks <= k).cpu().numpy().astype(np.float64), clusters)


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


def retrieval_answers(
    image_ND: Tensor,
    text_TD: Tensor,
    *,
    image_labels_N: Tensor,
    text_labels_T: Tensor,
    chunk: int = 256,
) -> dict[str, Answers]:
    """Recall at 1, 5 and 10 both ways: `image_to_text_r1` … `text_to_image_r10`.

    An image and a text belong together if their labels are equal: number the images for several
    captions an image, or the distinct captions where one may describe several images. The
    intervals draw the texts of a label together.
    """
    labels = image_labels_N, text_labels_T
    to_text, to_image = ranks_both_ways(image_ND, text_TD, labels, chunk=chunk)
    clusters = text_labels_T.cpu().numpy()
    found = {f"image_to_text_r{k}": answers_at(to_text, k) for k in RECALL_AT}
    return found | {
        f"text_to_image_r{k}": answers_at(to_image, k, clusters=clusters) for k in RECALL_AT
    }


def _sums_and_sizes(values: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    """What one draw adds to the total and to the number of items, [units, 2]."""
    if clusters is None:
        return np.stack([values, np.ones_like(values)], axis=1)
    if len(clusters) != len(values):
        raise DataError(f"bootstrap: {len(values)} values but {len(clusters)} cluster numbers")
    _, cluster = np.unique(clusters, return_inverse=True)
    return np.stack([np.bincount(cluster, values), np.bincount(cluster)], axis=1)


def _equal(clusters_Q: np.ndarray | None, others_Q: np.ndarray | None) -> bool:
    if clusters_Q is None or others_Q is None:
        return clusters_Q is others_Q
    return np.array_equal(clusters_Q, others_Q)


def _lower_median(values: np.ndarray) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2])


def _percentiles(value: float, drawn: np.ndarray) -> Interval:
    """A number with the ends of its 95% interval, which are among those that were drawn."""
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return Interval(value, float(low), float(high))
