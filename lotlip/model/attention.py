"""Attention within sequences that lie one after the other, those of one shape side by side.

Shape suffixes: T rows of all sequences, Q of them queries, D width, n sequences of a group or a
block, H heads, q queries and l rows of a sequence, d width of a head.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lotlip.model.corner_tokens import rule
from lotlip.model.packing import Group, by_group

_STEPS = {"cpu": (8, 8), "cuda": (16, 1)}
"""Lengths and numbers of sequences in a block of `_Layout` are multiples of these: few shapes, for
each of which oneDNN makes, and keeps, code of its own; masks as GPUs' kernels can read them."""


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
    query, key, value = (
        rows.unflatten(1, (num_heads, -1)) for rows in (query_QD, key_TD, value_TD)
    )
    if query.device.type == "cpu":
        # What torch has is slow in bfloat16 only, and there only backwards.
        rounded = query.dtype == torch.bfloat16 and torch.is_grad_enabled()
        by_length = not rounded or dropout > 0
    else:
        by_length = len(groups) == 1
    take: Callable[..., Tensor] = _by_length if by_length else _in_blocks  # type: ignore[assignment]
    return take(query, key, value, tuple(groups), dropout, read).flatten(1)


def _by_length(
    query_QHd: Tensor,
    key_THd: Tensor,
    value_THd: Tensor,
    groups: tuple[Group, ...],
    dropout: float,
    read: bool,
) -> Tensor:
    """[Q, H, d], with no mask but the rule for corner tokens: a group is of one length."""
    pieces = zip(
        groups,
        by_group(query_QHd, groups, read=read),
        by_group(key_THd, groups),
        by_group(value_THd, groups),
        strict=True,
    )
    seen = []
    for group, *rows in pieces:
        query_nHqd, key_nHld, value_nHld = (piece.transpose(1, 2) for piece in rows)
        mask = (
            rule(group.num_under_rule, group.length, query_QHd.device)
            if group.num_under_rule
            else None
        )
        seen_nHqd = F.scaled_dot_product_attention(
            query_nHqd,
            key_nHld,
            value_nHld,
            attn_mask=None if mask is None else mask[: query_nHqd.shape[2]],
            dropout_p=dropout,
        )
        seen.append(seen_nHqd.transpose(1, 2).flatten(0, 1))
    return torch.cat(seen)


@torch.compiler.disable  # it would be compiled anew for each batch
def _in_blocks(
    query_QHd: Tensor,
    key_THd: Tensor,
    value_THd: Tensor,
    groups: tuple[Group, ...],
    dropout: float,
    read: bool,
) -> Tensor:
    """[Q, H, d], by few calls with much to do in each."""
    num_heads, like = query_QHd.shape[1], (query_QHd.device, query_QHd.dtype)
    of_queries = _layout(groups, num_heads, read, *like)
    of_keys = _layout(groups, num_heads, False, *like)
    query, key, value = of_queries.move(query_QHd), of_keys.move(key_THd), of_keys.move(value_THd)
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        seen = _Rounded.apply(query, key, value, of_queries, of_keys)
    else:
        pieces = zip(
            of_queries.split(query),
            of_keys.split(key),
            of_keys.split(value),
            of_queries.masks,
            strict=True,
        )
        seen = torch.cat(
            [
                F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).flatten(
                    0, 2
                )
                for q, k, v, mask in pieces
            ]
        )
    return of_queries.back(seen)


class _Rounded(torch.autograd.Function):
    """Attention in bfloat16 on a processor, where torch's own is slower than in float32.

    Scores are in float32, as GPUs have them; they are kept rounded for backward, of which all is
    in bfloat16.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, of_queries: _Layout, of_keys: _Layout
    ) -> Tensor:
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
                    scores += mask
                shares.append(scores.softmax(dim=3).to(v.dtype))
                torch.matmul(shares[-1], v, out=out)
        ctx.save_for_backward(query, key, value, *shares)
        return seen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *shares = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
        pieces = zip(
            shares,
            *(ctx.of_queries.split(rows) for rows in (query, grads[0], grad_query)),
            *(ctx.of_keys.split(rows) for rows in (key, value, grad_key, grad_value)),
            strict=True,
        )
        with torch.autocast("cpu", enabled=False):
            for share, q, grad_out, grad_q, k, v, grad_k, grad_v in pieces:
                torch.matmul(share.mT, grad_out, out=grad_v)
                grad_share = grad_out @ v.mT
                grad_scores = torch.ops.aten._softmax_backward_data(
                    grad_share, share, 3, share.dtype
                )
                torch.matmul(grad_scores, k, out=grad_q)
                torch.matmul(grad_scores.mT, q, out=grad_k)
        return grad_query.mul_(ctx.scale), grad_key.mul_(ctx.scale), grad_value, None, None


@dataclass(frozen=True)
class _Layout:
    """Where rows are in blocks of sequences of about one length, as `_in_blocks` takes them.

    In a block lie the rows of the first head of the first sequence, of its second head, and so on,
    with zeros behind those that are shorter, and sequences of zeros.
    """

    shapes: tuple[tuple[int, int, int], ...]
    """Of each block: sequences, heads, rows of a sequence."""
    masks: tuple[Tensor | None, ...]
    """Of each block, what is added to its scores: [n, 1, q or 1, l]."""
    places: Tensor
    """Of each head of each row, where it is in the blocks."""

    def move(self, rows_THd: Tensor) -> Tensor:
        """[T, H, d] to all rows of all blocks, [rows, d]."""
        num_rows = sum(math.prod(shape) for shape in self.shapes)
        blocks = rows_THd.new_zeros(num_rows, rows_THd.shape[2])
        return blocks.index_copy(0, self.places, rows_THd.flatten(0, 1))

    def back(self, blocks: Tensor) -> Tensor:
        """The way back, to [T, H, d]."""
        num_heads = self.shapes[0][1]
        rows: Tensor = _Select.apply(blocks, self.places)  # type: ignore[no-untyped-call]
        return rows.unflatten(0, (-1, num_heads))

    def split(self, blocks: Tensor) -> list[Tensor]:
        """Views of the blocks: [n, H, rows of a sequence, d]."""
        pieces = blocks.split([math.prod(shape) for shape in self.shapes])
        return [piece.unflatten(0, shape) for piece, shape in zip(pieces, self.shapes, strict=True)]


class _Select(torch.autograd.Function):
    """`index_select` of places of which none is taken twice, whose gradient need not add up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.num_rows, ctx.places = len(rows), places
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        of_rows = grads[0].new_zeros(ctx.num_rows, grads[0].shape[1])
        return of_rows.index_copy_(0, ctx.places, grads[0]), None


@functools.lru_cache(maxsize=4)  # those of a batch: the layers of a tower ask for the same
def _layout(
    groups: tuple[Group, ...], num_heads: int, read: bool, device: torch.device, dtype: torch.dtype
) -> _Layout:
    with torch.inference_mode(False):  # what is kept may be needed for a gradient later
        return _new_layout(groups, num_heads, read, device, dtype)


def _new_layout(
    groups: tuple[Group, ...], num_heads: int, read: bool, device: torch.device, dtype: torch.dtype
) -> _Layout:
    length_step, number_step = _STEPS.get(device.type, _STEPS["cuda"])
    members: dict[tuple[int, int, int], list[int]] = {}
    for number, group in enumerate(groups):
        length = _rounded_up(group.length, length_step)
        key = (length, group.num_read, group.num_under_rule)
        members.setdefault(key, []).append(number)
    places: list[Tensor] = [torch.empty(0)] * len(groups)
    shapes, masks, start = [], [], 0
    for (length, num_read, under_rule), numbers in members.items():
        num_queries = num_read if read else length
        num_texts = _rounded_up(sum(groups[n].num_texts for n in numbers), number_step)
        lengths, text = [length] * num_texts, 0
        for number in numbers:
            group = groups[number]
            texts = torch.arange(text, text + group.num_texts)
            rows = torch.arange(group.num_read if read else group.length)
            first_row = (texts[:, None] * num_heads + torch.arange(num_heads)) * num_queries
            places[number] = (start + first_row[:, None] + rows[:, None]).flatten()
            lengths[text : text + group.num_texts] = [group.length] * group.num_texts
            text += group.num_texts
        shapes.append((num_texts, num_heads, num_queries))
        masks.append(_mask(lengths, length, under_rule, num_queries, device, dtype))
        start += math.prod(shapes[-1])
    return _Layout(tuple(shapes), tuple(masks), torch.cat(places).to(device, non_blocking=True))


def _mask(
    lengths: list[int],
    length: int,
    under_rule: int,
    num_queries: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor | None:
    """Below all where a row of a block may not be looked at: [n, 1, q or 1, l]."""
    if not under_rule and all(own == length for own in lengths):
        return None
    ends_n = torch.tensor(lengths).to(device, non_blocking=True)
    allowed = torch.arange(length, device=device) < ends_n[:, None, None, None]
    if under_rule:
        allowed = allowed & rule(under_rule, length, device)[:num_queries]
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, -torch.inf)


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step
