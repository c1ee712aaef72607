"""Corner tokens: who may look at whom in the text tower.

A text is [CLS] [Corner0] ... [Corner m-1] words ... [SEP]. A corner token is one more reader of the
words, beside [CLS] (Wu et al. 2024, section 3.3):

    query \\ key      CLS    corners       words
    CLS              yes    -             yes
    corner k         -      itself only   yes
    word             yes    -             yes

[SEP] counts as a word. Nobody looks at a corner but the corner itself, so the words and [CLS] come
out the same for every m, but for the shift of their positions.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=128)
def rule(num_corners: int, length: int, device: torch.device) -> Tensor:
    """Which rows (second) of a packed text a row (first) may look at: [length, length].

    The corner tokens come first, then [CLS], see `packing`. It is the same in every batch.
    """
    with torch.inference_mode(False):  # what is kept may be needed for a gradient later
        row = torch.arange(length, device=device)
        is_corner, is_cls = row < num_corners, row == num_corners
        allowed = ~is_corner[None, :] & ~(is_corner[:, None] & is_cls[None, :])
        return allowed | (row[:, None] == row[None, :])
