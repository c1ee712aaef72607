"""The text tower as the authors run it: padded, eager attention, a dense mask, all rows computed.

On the parameters of ours, so features and gradients can be compared, and time and memory, too.

Shape suffixes: B texts, L tokens, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lotlip.model.text_tower import Layer, TextTower


def plain_text_tower(tower: TextTower, ids_BL: Tensor, *, fused: bool = False) -> Tensor:
    """[CLS] and corner tokens of each text, pooled: [B, 1 + m, D]; `fused` is its attention."""
    m = tower.config.num_corner_tokens
    mask = additive_mask(ids_BL, m if tower.config.corner_mask else 0)
    embeddings = tower.embeddings
    table = torch.cat([embeddings.words.weight, embeddings.corners])
    positions = embeddings.positions.weight[: ids_BL.shape[1]]
    states = embeddings.norm(F.embedding(ids_BL, table) + positions + embeddings.segment)
    for layer in tower.layers:
        states = _layer(layer, states, mask, fused)  # type: ignore[arg-type]
    return torch.tanh(tower.pooler(states[:, : m + 1]))


def additive_mask(ids_BL: Tensor, m: int) -> Tensor:
    """[B, 1, L, L]: 0 where a query (row) may look at a key (column), far below elsewhere."""
    position = torch.arange(ids_BL.shape[1], device=ids_BL.device)
    is_corner = (position >= 1) & (position <= m)
    allowed = ~is_corner[None, :] & ~(is_corner[:, None] & (position == 0)[None, :])
    allowed = allowed | torch.eye(len(position), dtype=torch.bool, device=ids_BL.device)
    allowed_BLL = allowed & (ids_BL != 0)[:, None, :]
    return (~allowed_BLL[:, None]).float() * torch.finfo(torch.float32).min


def _layer(layer: Layer, states_BLD: Tensor, mask: Tensor, fused: bool) -> Tensor:
    def heads(states: Tensor) -> Tensor:
        return states.unflatten(2, (layer.num_heads, -1)).transpose(1, 2)

    query, key, value = (heads(part(states_BLD)) for part in (layer.query, layer.key, layer.value))
    if fused:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    else:
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + mask
        mixed = scores.softmax(dim=-1) @ value
    mixed = mixed.transpose(1, 2).flatten(2)
    states_BLD = layer.norm1(states_BLD + layer.output(mixed))
    hidden = layer.fc2(F.gelu(layer.fc1(states_BLD)))
    return layer.norm2(states_BLD + hidden)
