"""Corner tokens: who may look at whom in the text tower.

A text is [CLS] [Corner0] ... [Corner m-1] words ... [SEP]. A corner token is one more reader of the
words, beside [CLS] (Wu et al. 2024, section 3.3):

    query \\ key      CLS    corners       words
    CLS              yes    -             yes
    corner k         -      itself only   yes
    word             yes    -             yes

[SEP] counts as a word. Nobody looks at a corner but the corner itself, so the words and [CLS] come
out the same for every m, but for the shift of their positions: for them there is nothing to mask.

Shape suffixes: T rows (see `packing`), D width, n texts of a group, H heads, L rows of a text, d
width of a head, m corner tokens.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from lotlip.model.attention import attention
from lotlip.model.packing import PackedTexts


def attend(
    query: Tensor,
    key_TD: Tensor,
    value_TD: Tensor,
    texts: PackedTexts,
    *,
    num_heads: int,
    dropout: float,
    read: bool,
) -> Tensor:
    """What each query sees of its own text: [T, D], or [R, D] for the queries that are `read`."""
    mixed = []
    of_groups = zip(
        texts.groups,
        texts.split(query, read=read),
        texts.split(key_TD),
        texts.split(value_TD),
        strict=True,
    )
    for group, *rows in of_groups:
        q, k, v = (part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in rows)
        m = group.num_corners
        seen = attention(q[:, :, m:], k[:, :, m:], v[:, :, m:], dropout=dropout)
        if m:
            rule = _rule(m, group.length, q.device)
            of_corners = attention(q[:, :, :m], k, v, mask=rule, dropout=dropout)
            seen = torch.cat([of_corners, seen], dim=2)
        mixed.append(seen.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(mixed)


@functools.cache
def _rule(num_corners: int, length: int, device: torch.device) -> Tensor:
    """Which rows of its text a corner token may look at: [m, L], the same in every batch."""
    itself = torch.eye(num_corners, num_corners + 1, dtype=torch.bool, device=device)  # not [CLS]
    return F.pad(itself, (0, length - num_corners - 1), value=True)
