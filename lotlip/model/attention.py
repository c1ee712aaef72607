"""Scaled dot-product attention, at the precision in which a device is fast at it.

Shape suffixes: B sequences, H heads, Q queries, L keys, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    query_BHQd: Tensor,
    key_BHLd: Tensor,
    value_BHLd: Tensor,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """What each query sees: [B, H, Q, d], in the queries' type.

    `mask` says which keys a query may look at: [Q, L].
    """
    inputs = query_BHQd, key_BHLd, value_BHLd
    if query_BHQd.device.type != "cpu" or query_BHQd.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(*inputs, attn_mask=mask, dropout_p=dropout)
    # Processors take five times as long for the backward pass in bfloat16 as in float32.
    with torch.autocast("cpu", enabled=False):
        query, key, value = (values.float() for values in inputs)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return seen.to(query_BHQd.dtype)
