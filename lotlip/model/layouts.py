"""The layouts of weights made elsewhere: which of their tensors make which of ours.

A layout is written from our side. So a key of theirs is either asked for or has no place here, no
two of them can fill one tensor of ours, and messages name keys as their file has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lotlip.errors import CheckpointError

_OURS_TO_BERT = (
    (r"embeddings\.words\.", "embeddings.word_embeddings."),
    (r"embeddings\.positions\.", "embeddings.position_embeddings."),
    (r"embeddings\.norm\.", "embeddings.LayerNorm."),
    (r"layers\.(\d+)\.(query|key|value)\.", r"encoder.layer.\1.attention.self.\2."),
    (r"layers\.(\d+)\.output\.", r"encoder.layer.\1.attention.output.dense."),
    (r"layers\.(\d+)\.norm1\.", r"encoder.layer.\1.attention.output.LayerNorm."),
    (r"layers\.(\d+)\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"layers\.(\d+)\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"layers\.(\d+)\.norm2\.", r"encoder.layer.\1.output.LayerNorm."),
    (r"pooler\.", "pooler.dense."),
)
_OURS_TO_VIT = (
    (r"cls_token", "embeddings.cls_token"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"blocks\.(\d+)\.norm1\.", r"encoder.layer.\1.layernorm_before."),
    (r"blocks\.(\d+)\.norm2\.", r"encoder.layer.\1.layernorm_after."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"norm\.", "layernorm."),
)
_OURS_TO_OFFICIAL = (
    (r"image_tower\.", "visual.trunk."),
    (r"image_projection\.", "visual.head.proj."),
    (r"text_projection\.", "text.proj."),
)
_NUM_SEGMENTS = 2  # of every BERT
_BERT_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")

Shapes = Mapping[str, torch.Size]
"""What a tower or model of ours needs, by our names."""


@dataclass(frozen=True)
class Origin:
    """Where one tensor of ours comes from."""

    keys: tuple[str, ...]
    shape: torch.Size
    """Of the tensor at each key."""
    make: Callable[..., Tensor] = lambda tensor: tensor
    """From the tensors at `keys` to ours."""


Layout = Mapping[str, Origin]
"""By our names."""


def timm_layout(tower: Shapes) -> Layout:
    """An image tower as timm names it, which is as we do."""
    return {name: Origin((name,), shape) for name, shape in tower.items()}


def vit_layout(tower: Shapes, prefix: str = "") -> Layout:
    """An image tower as transformers writes it: query, key and value lie apart."""
    layout = {}
    for name, shape in tower.items():
        fused = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name)
        if fused:
            block, kind = fused.groups()
            attention = f"{prefix}encoder.layer.{block}.attention.attention"
            keys = tuple(f"{attention}.{part}.{kind}" for part in ("query", "key", "value"))
            third = torch.Size([shape[0] // 3, *shape[1:]])
            layout[name] = Origin(keys, third, lambda *parts: torch.cat(parts))
        else:
            layout[name] = Origin((prefix + _theirs(name, _OURS_TO_VIT),), shape)
    return layout


def bert_layout(tower: Shapes, present: Container[str], prefix: str = "") -> Layout:
    """A text tower in a BERT model with the keys `present`; it has no corner tokens.

    BERT has two segments, of which all our tokens are in the first.
    """
    layout = {}
    for name, shape in tower.items():
        if name == "embeddings.segment":
            key = f"{prefix}embeddings.token_type_embeddings.weight"
            both = torch.Size([_NUM_SEGMENTS, *shape])
            layout[name] = Origin((key,), both, lambda table: table[0])
        elif name != "embeddings.corners":
            key = _as_spelt(prefix + _theirs(name, _OURS_TO_BERT), present)
            layout[name] = Origin((key,), shape)
    return layout


def official_layout(model: Shapes, present: Container[str], prefix: str = "") -> Layout:
    """A checkpoint of the authors: the corner tokens stand behind the word pieces."""
    own = "text_tower."
    tower = {name.removeprefix(own): s for name, s in model.items() if name.startswith(own)}
    layout = {
        name: Origin((prefix + _theirs(name, _OURS_TO_OFFICIAL),), shape)
        for name, shape in model.items()
        if not name.startswith(own)
    }
    text = bert_layout(tower, present, f"{prefix}text.transformer.")
    layout |= {own + name: origin for name, origin in text.items()}
    words = layout[f"{own}embeddings.words.weight"]
    num_words, width = words.shape
    table = torch.Size([num_words + tower["embeddings.corners"][0], width])
    layout[f"{own}embeddings.words.weight"] = Origin(words.keys, table, lambda t: t[:num_words])
    layout[f"{own}embeddings.corners"] = Origin(words.keys, table, lambda t: t[num_words:])
    return layout


def is_bert_buffer(key: str, prefix: str) -> bool:
    """Whether a key holds positions or segments counted up, which is nothing that was learnt."""
    return key.removeprefix(prefix) in _BERT_BUFFERS and key.startswith(prefix)


def arranged(state: Mapping[str, Tensor], layout: Layout, where: str) -> dict[str, Tensor]:
    """Our tensors, each key of theirs accounted for. Raises: CheckpointError."""
    wanted = {key: origin.shape for origin in layout.values() for key in origin.keys}
    check_tensors(state, wanted, where)
    return {
        name: origin.make(*(state[key] for key in origin.keys)) for name, origin in layout.items()
    }


def check_tensors(state: Mapping[str, Tensor], wanted: Shapes, where: str) -> None:
    """Raises: CheckpointError unless `state` has exactly the wanted keys, in these shapes."""
    missing, left_over = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing:
        raise CheckpointError(f"{where} lacks {_first(missing)}")
    if left_over:
        raise CheckpointError(f"{where} has {_first(left_over)}, which this model has no place for")
    for key, value in state.items():
        if value.shape != wanted[key]:
            raise CheckpointError(
                f"{where}: {key} has shape {list(value.shape)}, the model needs {list(wanted[key])}"
            )
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(f"{where}: {key} holds {kind}, the model needs floating point")


def _theirs(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, theirs in rules:
        if found := re.match(pattern, name):
            return found.expand(theirs) + name[found.end() :]
    return name


def _as_spelt(key: str, present: Container[str]) -> str:
    """Files made from TensorFlow's have gamma and beta for the weight and bias of a norm."""
    old = key.replace("LayerNorm.weight", "LayerNorm.gamma")
    old = old.replace("LayerNorm.bias", "LayerNorm.beta")
    return old if old in present and key not in present else key


def _first(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} (and {len(keys) - 1} more)"
