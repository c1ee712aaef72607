"""Ranks of right items, exact, in tiles: any number of queries and items in bounded memory.

Scores in single precision decide where they can: nearly everywhere. Where a score is as near to
that of the best right item as rounding may have moved it, the exact one does.

Shape suffixes: Q queries, N items, D width, C queries of one tile, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lotlip.errors import ConfigError, DataError

Right = tuple[Tensor, Tensor] | Callable[[int, int], Tensor]
"""Which items are right for a query: labels (query [Q], item [N]; equal labels are right), or a
function that gives the boolean mask [stop - start, N] of the queries from `start` up to `stop`."""

_SCORE_BITS = 26  # two rows of length 2**26 have a dot product of at most 2**52: exact in float64
_PAIRS_AT_ONCE = 1 << 13
_ROWS_AT_ONCE = 1 << 12
_ALL = 2**62
_FAR = 20
"""Powers of two by which rows are too long or too short to be multiplied as they are."""
_FEW = 64
"""Below one pair in so many, exact scores are made pair by pair rather than for the whole tile."""


def retrieval_ranks(
    query_QD: Tensor,
    item_ND: Tensor,
    right: Right,
    *,
    first_wins: bool = False,
    chunk: int = 256,
) -> Tensor:
    """The rank (1 = best) of the best right item of each query, int64 [Q].

    Ties count against the model: a wrong item that scores as high as the best right one stands
    before it, so a constant model gets the worst ranks and the order of the items has no influence.
    With `first_wins` the first of equal scores stands before the others, as argmax has it.

    Scores are dot products of features rounded to 2**-26 of the longest row of their side. That is
    finer than a float32 product and makes every sum exact, so equal pairs tie whatever the chunk,
    the device or the order of summation.

    Args:
        query_QD: features, normally of length 1.
        item_ND: features; the scores are not normalised here.
        chunk: queries scored at once; memory grows with chunk x N.

    Raises: DataError if a feature is not finite or a query has no right item.
    """
    return _ranks(query_QD, item_ND, right, chunk, both=False, first_wins=first_wins)[0]


def ranks_both_ways(
    query_QD: Tensor,
    item_ND: Tensor,
    right: Right,
    *,
    first_wins: bool = False,
    chunk: int = 256,
) -> tuple[Tensor, Tensor]:
    """`retrieval_ranks`, and the same with queries and items in each other's place: [Q], [N].

    Each pair is scored once. Raises: DataError also if an item is right for no query.
    """
    return _ranks(query_QD, item_ND, right, chunk, both=True, first_wins=first_wins)


def _ranks(
    query_QD: Tensor, item_ND: Tensor, right: Right, chunk: int, *, both: bool, first_wins: bool
) -> tuple[Tensor, Tensor]:
    if chunk < 1:
        raise ConfigError(f"chunk must be at least 1, got {chunk}")
    _check_shapes(query_QD, item_ND)
    scores = _Scores(query_QD, item_ND)
    right_of = right if callable(right) else _equal_labels(*right, query_QD, item_ND)
    tiles = [
        slice(start, min(start + chunk, len(query_QD))) for start in range(0, len(query_QD), chunk)
    ]
    best_Q, best_N = (_lowest(features) for features in (query_QD, item_ND))
    for tile in tiles:
        query_P, item_P, exact_P = _right_pairs(right_of, scores, tile, item_ND)
        best_Q.scatter_reduce_(0, query_P, exact_P, "amax")
        best_N.scatter_reduce_(0, item_P, exact_P, "amax")
    # Of equal scores those stand before the best right one whose place is below this.
    until_Q, until_N = (torch.full_like(best, _ALL).long() for best in (best_Q, best_N))
    for tile in tiles if first_wins else ():
        query_P, item_P, exact_P = _right_pairs(right_of, scores, tile, item_ND)
        for until, best, of_P, place_P in (
            (until_Q, best_Q, query_P, item_P),
            (until_N, best_N, item_P, query_P),
        ):
            is_best = exact_P == best[of_P]
            until.scatter_reduce_(0, of_P[is_best], place_P[is_best], "amin")
    if both and not best_N.isfinite().all():
        index = int(best_N.isfinite().logical_not().nonzero()[0])
        raise DataError(f"item {index} is right for no query: remove it or mend its labels")
    ranks_Q, ranks_N = (torch.ones_like(best, dtype=torch.int64) for best in (best_Q, best_N))
    for tile in tiles:
        scores_CN = scores.rough(tile)
        wrong_CN = ~right_of(tile.start, tile.stop).to(query_QD.device)
        of_tile = scores_CN, wrong_CN, tile
        ranks_Q[tile] += scores.num_before(best_Q[tile], until_Q[tile], *of_tile, dim=1)
        if both:
            ranks_N += scores.num_before(best_N, until_N, *of_tile, dim=0)
    return ranks_Q, ranks_N


def _right_pairs(
    right_of: Callable[[int, int], Tensor], scores: _Scores, tile: slice, item_ND: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, item and exact score of the right pairs of a tile, each [P]. Raises: DataError."""
    right_CN = _checked(right_of(tile.start, tile.stop), tile, item_ND)
    query_P, item_P = right_CN.nonzero(as_tuple=True)
    query_P = query_P + tile.start
    return query_P, item_P, scores.exact(query_P, item_P, tile)


class _Scores:
    """Scores of all pairs. Exact ones are for rows scaled to a length of 1 at most."""

    def __init__(self, query_QD: Tensor, item_ND: Tensor) -> None:
        """Raises: DataError if a feature isn't finite."""
        self._query, self._item = _Side(query_QD, "query"), _Side(item_ND, "item")
        width = query_QD.shape[1]
        # Of scaled rows. Single precision rounds both factors and each of the sums
        # (Higham 2002, section 3.1), fixed point both factors.
        self._error = 1.01 * ((width + 4) * 2.0**-24 + 2 * math.sqrt(width) * 2.0**-27)

    def rough(self, tile: slice) -> Tensor:
        """[C, N], no further from the exact scores than `_error`, but not scaled."""
        query_CD, item_ND = self._query.rough_ND[tile], self._item.rough_ND
        with torch.autocast(query_CD.device.type, enabled=False):
            return query_CD @ item_ND.T

    def exact(self, query_P: Tensor, item_P: Tensor, tile: slice) -> Tensor:
        """Of pairs of the tile, as fractions: [P]."""
        if len(query_P) * _FEW > (tile.stop - tile.start) * len(self._item.rough_ND):
            scores_CN = self._query.exact(tile) @ self._item.exact(slice(None)).T
            return scores_CN[query_P - tile.start, item_P]
        pieces = zip(query_P.split(_PAIRS_AT_ONCE), item_P.split(_PAIRS_AT_ONCE), strict=True)
        dots = [torch.linalg.vecdot(self._query.exact(q), self._item.exact(i)) for q, i in pieces]
        return torch.cat(dots) if dots else _lowest(query_P[:0])

    def num_before(
        self,
        best: Tensor,
        until: Tensor,
        rough_CN: Tensor,
        wrong_CN: Tensor,
        tile: slice,
        *,
        dim: int,
    ) -> Tensor:
        """Wrong ones of the tile that score above `best`, or as high at a place below `until`.

        With `dim` 1 these are items of each query, [C], with 0 queries of each item, [N].
        """
        unit = self._query.unit * self._item.unit
        most, least = (
            ((best + error) * unit).to(rough_CN.dtype).unsqueeze(dim)
            for error in (self._error, -self._error)
        )
        above_CN = rough_CN > most  # never a right pair
        near_CN = (rough_CN >= least) & ~above_CN & wrong_CN
        query_P, item_P = near_CN.nonzero(as_tuple=True)
        exact_P = self.exact(query_P + tile.start, item_P, tile)
        of_P, place_P = (query_P, item_P) if dim == 1 else (item_P, query_P + tile.start)
        ties_before_P = (exact_P == best[of_P]) & (place_P < until[of_P])
        above_CN[query_P, item_P] = (exact_P > best[of_P]) | ties_before_P
        return above_CN.sum(dim=dim)


class _Side:
    """The features of one side."""

    def __init__(self, features_ND: Tensor, what: str) -> None:
        """Raises: DataError if one isn't finite."""
        self._features_ND = features_ND.detach()
        pieces = self._features_ND.split(_ROWS_AT_ONCE)
        length_N = torch.cat([torch.linalg.vector_norm(p.double(), dim=1) for p in pieces])
        if not length_N.isfinite().all():
            index = int(length_N.isfinite().logical_not().nonzero()[0])
            raise DataError(
                f"the features of {what} {index} are not finite: look at the model or its input"
            )
        _, self._exponent = math.frexp(float(length_N.max())) if len(length_N) else (0.0, 0)
        self.rough_ND = self._features_ND.to(_rough_dtype())
        self.unit = 2.0**self._exponent
        if abs(self._exponent) > _FAR:  # products might be too large, or too small
            self.rough_ND = (self._features_ND.double() / self.unit).to(self.rough_ND.dtype)
            self.unit = 1.0

    def exact(self, rows: Tensor | slice) -> Tensor:
        """Some rows in float64, as multiples of 2**-26 of a length, none being longer."""
        rows_PD = self._features_ND[rows].double()
        scaled_PD = rows_PD * math.ldexp(1.0, _SCORE_BITS - self._exponent)
        return scaled_PD.round_() * 2.0**-_SCORE_BITS


def _checked(right_CN: Tensor, tile: slice, item_ND: Tensor) -> Tensor:
    """Raises: DataError for a mask of another shape, or a query without a right item."""
    right_CN = right_CN.to(item_ND.device)
    if right_CN.shape != (tile.stop - tile.start, len(item_ND)) or right_CN.dtype != torch.bool:
        raise DataError(
            f"queries {tile.start} to {tile.stop}: the right items must be a boolean mask "
            f"[{tile.stop - tile.start}, {len(item_ND)}], got {right_CN.dtype} "
            f"{list(right_CN.shape)}"
        )
    answered_C = right_CN.any(dim=1)
    if not answered_C.all():
        index = tile.start + int(answered_C.logical_not().nonzero()[0])
        raise DataError(f"query {index} has no right item: remove it or mend its labels")
    return right_CN


def _rough_dtype() -> torch.dtype:
    """Single precision, unless its products may be made of less, as TensorFloat-32 is."""
    try:
        is_single = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set for one backend in another way
        is_single = False
    return torch.float32 if is_single else torch.float64


def _lowest(rows: Tensor) -> Tensor:
    return torch.full((len(rows),), -math.inf, dtype=torch.float64, device=rows.device)


def _check_shapes(query_QD: Tensor, item_ND: Tensor) -> None:
    if query_QD.ndim != 2 or item_ND.ndim != 2 or query_QD.shape[1] != item_ND.shape[1]:
        raise DataError(
            "queries and items need features of one width, "
            f"got {list(query_QD.shape)} and {list(item_ND.shape)}"
        )


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
