"""Texts without padding: the tokens of a batch in one row after the other.

A text is its corner tokens, [CLS] and its words, in this order; a text whose corner tokens nobody
reads has none. Texts of one shape lie side by side: all of one length are one dense batch.

Shape suffixes: N texts, L tokens of a padded text, T rows, m corner tokens, D width,
R rows that are read ([CLS] and corner tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lotlip.errors import DataError

PAD_ID = 0


@dataclass(frozen=True)
class Group:
    """Texts, or images, of one shape."""

    num_texts: int
    length: int
    """Rows of each."""
    num_corners: int
    """The first of them."""
    masked: bool = True
    """Whether corner tokens are under their rule, rather than like words."""

    @property
    def num_under_rule(self) -> int:
        """The first rows, of which who may look at whom is restricted."""
        return self.num_corners if self.masked else 0

    @property
    def num_read(self) -> int:
        """Rows of each text that are read: the corner tokens and [CLS], which come first."""
        return self.num_corners + 1


@dataclass(frozen=True)
class PackedTexts:
    """A batch of texts; `pack` makes it."""

    groups: Sequence[Group]
    ids_T: Tensor
    """Word pieces; `PAD_ID` where a corner token is."""
    positions_T: Tensor
    """Of each token in its text, all corner tokens counted."""
    corner_rows: Tensor
    """Where corner tokens are: 0 to m - 1 of one text, of the next, and so on."""
    order_R: Tensor
    """Where, among the rows that are read, those of the given texts are: text by text, [CLS]
    first."""

    def read(self, rows_TD: Tensor) -> Tensor:
        """The rows that are read [R, D], group by group."""
        pieces = zip(self.groups, by_group(rows_TD, self.groups), strict=True)
        return torch.cat([piece[:, : group.num_read].flatten(0, 1) for group, piece in pieces])


def by_group(rows: Tensor, groups: Sequence[Group], *, read: bool = False) -> list[Tensor]:
    """Rows [T, ...] by group: [texts, length, ...]; or rows [R, ...] that are read."""
    lengths = [group.num_read if read else group.length for group in groups]
    shapes = [(group.num_texts, length) for group, length in zip(groups, lengths, strict=True)]
    pieces = rows.split([number * length for number, length in shapes])
    return [piece.unflatten(0, shape) for piece, shape in zip(pieces, shapes, strict=True)]


def pack(
    ids_NL: Tensor,
    num_corner_tokens: int,
    has_corners_N: Tensor | None = None,
    device: torch.device | str = "cpu",
    *,
    masked: bool = True,
) -> PackedTexts:
    """Texts as the tokenizer makes them, [CLS] and then the corner tokens first, without padding.

    `has_corners_N` says of which texts the corner tokens are read; without it, of all. Unless they
    are `masked`, all texts have them. This is done by the processor, best on ids that are not on a
    GPU yet; what comes out is put on the `device`.
    Raises: DataError if a text doesn't begin with a token.
    """
    m = num_corner_tokens
    ids_NL = ids_NL.cpu()
    empty_N = ids_NL[:, 0] == PAD_ID
    if empty_N.any():
        raise DataError(f"text {int(empty_N.nonzero()[0])} of the batch is nothing but padding")
    has_corners_N = torch.full((len(ids_NL),), m > 0) if has_corners_N is None else has_corners_N
    positions_L = torch.cat(
        [torch.arange(1, 1 + m), torch.tensor([0]), torch.arange(1 + m, ids_NL.shape[1])]
    )
    is_row_NL = (ids_NL != PAD_ID)[:, positions_L]
    is_row_NL[:, :m] &= has_corners_N[:, None]
    shape_N = 2 * is_row_NL.sum(dim=1) + has_corners_N
    sorted_N = shape_N.argsort(stable=True)
    shapes, counts = shape_N[sorted_N].unique_consecutive(return_counts=True)
    text_T, column_T = is_row_NL[sorted_N].nonzero(as_tuple=True)
    positions_T = positions_L[column_T]
    is_corner_T = column_T < m
    ids_T = ids_NL[sorted_N][text_T, positions_T].masked_fill(is_corner_T, PAD_ID)
    return PackedTexts(
        groups=[
            Group(number, shape // 2, m * (shape % 2), masked)
            for number, shape in zip(counts.tolist(), shapes.tolist(), strict=True)
        ],
        ids_T=ids_T.to(device, non_blocking=True),
        positions_T=positions_T.to(device, non_blocking=True),
        corner_rows=is_corner_T.nonzero()[:, 0].to(device, non_blocking=True),
        order_R=_order(sorted_N, has_corners_N, m).to(device, non_blocking=True),
    )


def _order(sorted_N: Tensor, has_corners_N: Tensor, m: int) -> Tensor:
    num_corners_N = m * has_corners_N.long()
    ends = (1 + num_corners_N[sorted_N]).cumsum(dim=0)
    cls_N = torch.empty_like(sorted_N)
    cls_N[sorted_N] = ends - 1  # behind its corner tokens
    corners_Nm = (cls_N - num_corners_N)[:, None] + torch.arange(m)
    return torch.cat([cls_N[:, None], corners_Nm], dim=1)[is_read(has_corners_N, m)]


def is_read(has_corners_N: Tensor, m: int) -> Tensor:
    """Of each text whether [CLS] and its corner tokens are read: [N, 1 + m]."""
    return torch.cat(
        [torch.ones_like(has_corners_N)[:, None], has_corners_N[:, None].expand(-1, m)], dim=1
    )
