"""Attention within sequences that lie one after the other, those of one shape side by side.

Shape suffixes: T rows of all sequences, Q of them queries, D width, n sequences of a group, H
heads, q queries and l rows of a sequence, d width of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lotlip.model.corner_tokens import rule
from lotlip.model.packing import Group, by_group

_LENGTHS, _NUMBERS = 8, 8
"""Lengths and numbers of sequences in a block of `_Layout` are multiples of these."""


def attend(
    query_QD: Tensor,
    key_TD: Tensor,
    value_TD: Tensor,
    groups: Sequence[Group],
    *,
    num_heads: int,
    dropout: float = 0.0,
    read: bool = False,
) -> Tensor:
    """What each query sees of its own sequence: [Q, D].

    Queries are all rows, or only those that are `read`.
    """
    if query_QD.device.type == "cpu" and query_QD.dtype == torch.bfloat16 and not dropout:
        heads = (rows.unflatten(1, (num_heads, -1)) for rows in (query_QD, key_TD, value_TD))
        seen: Tensor = _Rounded.apply(*heads, tuple(groups), read)  # type: ignore[no-untyped-call]
        return seen.flatten(1)
    pieces = zip(
        groups,
        by_group(query_QD, groups, read=read),
        by_group(key_TD, groups),
        by_group(value_TD, groups),
        strict=True,
    )
    mixed = []
    for group, *rows in pieces:
        query_nHqd, key_nHld, value_nHld = (
            piece.unflatten(2, (num_heads, -1)).transpose(1, 2) for piece in rows
        )
        mask = rule(group.num_corners, group.length, query_QD.device) if group.num_corners else None
        seen_nHqd = F.scaled_dot_product_attention(
            query_nHqd,
            key_nHld,
            value_nHld,
            attn_mask=None if mask is None else mask[: query_nHqd.shape[2]],
            dropout_p=dropout,
        )
        mixed.append(seen_nHqd.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(mixed)


class _Rounded(torch.autograd.Function):
    """Attention in bfloat16 on a processor, where torch's own is slower than in float32.

    Scores are in float32, as GPUs have them; they are kept rounded for backward, of which all is
    in bfloat16.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_QHd: Tensor,
        key_THd: Tensor,
        value_THd: Tensor,
        groups: tuple[Group, ...],
        read: bool,
    ) -> Tensor:
        of_queries = _layout(groups, query_QHd.shape[1], read)
        of_keys = _layout(groups, query_QHd.shape[1], False)
        query, key, value = of_queries(query_QHd), of_keys(key_THd), of_keys(value_THd)
        ctx.of_queries, ctx.of_keys, ctx.scale = of_queries, of_keys, query.shape[1] ** -0.5
        seen, shares = torch.empty_like(query), []
        pieces = zip(
            of_queries.masks,
            of_queries.split(query.float().mul_(ctx.scale)),
            of_keys.split(key.float()),
            of_keys.split(value),
            of_queries.split(seen),
            strict=True,
        )
        with torch.autocast("cpu", enabled=False):
            for mask, q, k, v, out in pieces:
                scores = q @ k.mT
                if mask is not None:
                    scores.unflatten(0, (len(mask), -1)).add_(mask)
                shares.append(scores.softmax(dim=2).to(v.dtype))
                torch.bmm(shares[-1], v, out=out)
        ctx.save_for_backward(query, key, value, *shares)
        return of_queries.back(seen)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of_queries, of_keys = ctx.of_queries, ctx.of_keys
        query, key, value, *shares = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
        pieces = zip(
            shares,
            *(of_queries.split(rows) for rows in (query, of_queries(grads[0]), grad_query)),
            *(of_keys.split(rows) for rows in (key, value, grad_key, grad_value)),
            strict=True,
        )
        with torch.autocast("cpu", enabled=False):
            for share, q, grad_out, grad_q, k, v, grad_k, grad_v in pieces:
                torch.bmm(share.mT, grad_out, out=grad_v)
                grad_share = grad_out @ v.mT
                grad_scores = torch.ops.aten._softmax_backward_data(
                    grad_share, share, 2, share.dtype
                )
                torch.bmm(grad_scores, k, out=grad_q)
                torch.bmm(grad_scores.mT, q, out=grad_k)
        of_query = of_queries.back(grad_query.mul_(ctx.scale))
        return (
            of_query,
            of_keys.back(grad_key.mul_(ctx.scale)),
            of_keys.back(grad_value),
            None,
            None,
        )


@dataclass(frozen=True)
class _Layout:
    """Where rows are for `_Rounded`: in blocks of sequences of about one length.

    In a block lie the rows of the first head of the first sequence, of its second head, and so on,
    with zeros behind those that are shorter, and sequences of zeros: few shapes come again and
    again, for each of which oneDNN makes, and keeps, code of its own.
    """

    num_heads: int
    shapes: tuple[tuple[int, int], ...]
    """Of each block: sequences x heads, rows of each."""
    masks: tuple[Tensor | None, ...]
    """Of each block, what is added to its scores: [n, 1, q or 1, l]."""
    places: Tensor
    """Of each head of each row, where it is in the blocks."""

    def __call__(self, rows_THd: Tensor) -> Tensor:
        """[T, H, d] to all rows of all blocks, [rows, d]."""
        num_rows = sum(number * length for number, length in self.shapes)
        blocks = rows_THd.new_zeros(num_rows, rows_THd.shape[2])
        return blocks.index_copy_(0, self.places, rows_THd.flatten(0, 1))

    def back(self, blocks: Tensor) -> Tensor:
        """The way back, to [T, H, d]."""
        return blocks.index_select(0, self.places).unflatten(0, (-1, self.num_heads))

    def split(self, blocks: Tensor) -> list[Tensor]:
        """Views of the blocks: [sequences x heads, rows of each, d]."""
        pieces = blocks.split([number * length for number, length in self.shapes])
        return [piece.unflatten(0, shape) for piece, shape in zip(pieces, self.shapes, strict=True)]


@functools.lru_cache(maxsize=8)  # the layers of both towers ask for few, again and again
def _layout(groups: tuple[Group, ...], num_heads: int, read: bool) -> _Layout:
    members: dict[tuple[int, int], list[int]] = {}
    for number, group in enumerate(groups):
        key = (_rounded_up(group.length, _LENGTHS), group.num_corners)
        members.setdefault(key, []).append(number)
    places: list[Tensor] = [torch.empty(0)] * len(groups)
    shapes, masks, start = [], [], 0
    for (length, num_corners), numbers in members.items():
        num_queries = num_corners + 1 if read else length
        num_texts = _rounded_up(sum(groups[number].num_texts for number in numbers), _NUMBERS)
        hidden, text = torch.zeros(num_texts, length, dtype=torch.bool), 0
        for number in numbers:
            group = groups[number]
            texts = torch.arange(text, text + group.num_texts)
            rows = torch.arange(group.num_read if read else group.length)
            first_row = (texts[:, None] * num_heads + torch.arange(num_heads)) * num_queries
            places[number] = (start + first_row[:, None] + rows[:, None]).flatten()
            hidden[texts, group.length :] = True
            text += group.num_texts
        mask = torch.zeros(num_texts, 1, 1, length).masked_fill(hidden[:, None, None], -torch.inf)
        if num_corners:
            forbidden = ~rule(num_corners, length, torch.device("cpu"))[:num_queries]
            mask = mask.masked_fill(forbidden, -torch.inf)
        masks.append(mask if mask.any() else None)
        shapes.append((num_texts * num_heads, num_queries))
        start += num_texts * num_heads * num_queries
    return _Layout(num_heads, tuple(shapes), tuple(masks), torch.cat(places))


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step
