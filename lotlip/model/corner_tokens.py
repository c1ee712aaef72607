"""Corner tokens: who may look at whom in the text tower.

A text is [CLS] [Corner0] ... [Corner m-1] words ... [SEP], then padding. A corner token is one more
reader of the words, beside [CLS] (Wu et al. 2024, section 3.3):

    query \\ key      CLS    corners       words    padding
    CLS              yes    -             yes      -
    corner k         -      itself only   yes      -
    word             yes    -             yes      -

[SEP] counts as a word. Nobody looks at a corner but the corner itself, so the words and [CLS] come
out the same for every m, but for the shift of their positions.

Shape suffixes: B texts, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

PAD_ID = 0


def attention_mask(ids_BL: Tensor, num_corner_tokens: int) -> Tensor:
    """True where a query (row) may look at a key (column): [B, 1, L, L], or [B, 1, 1, L] for m = 0.

    Rows of padding are the same as those of words: they are computed and never read.
    """
    is_token_BL = ids_BL != PAD_ID
    if num_corner_tokens == 0:
        return is_token_BL[:, None, None, :]
    rule_LL = _rule(ids_BL.shape[1], num_corner_tokens, ids_BL.device)
    return (rule_LL & is_token_BL[:, None, :])[:, None]


def _rule(length: int, num_corner_tokens: int, device: torch.device) -> Tensor:
    """Who may look at whom in a text without padding: [L, L]."""
    position = torch.arange(length, device=device)
    is_corner = (position >= 1) & (position <= num_corner_tokens)
    corner_query, corner_key = is_corner[:, None], is_corner[None, :]
    itself = torch.eye(length, dtype=torch.bool, device=device)
    key_is_cls = (position == 0)[None, :]
    return (~corner_key & ~(corner_query & key_is_cls)) | itself
