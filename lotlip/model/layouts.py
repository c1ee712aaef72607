"""The layouts of weights made elsewhere: which of their tensors make which of ours.

A layout is written from our side. So a key of theirs is either asked for or has no place here, no
two of them can fill one tensor of ours, and messages name keys as their file has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace

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
_OURS_TO_HF = ((r"image_projection\.", "visual_projection."),)
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
    unmake: Callable[[Tensor], tuple[Tensor, ...]] = lambda tensor: (tensor,)
    """From ours to those at `keys`, each in `shape`: what it has no part in is zero."""


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
            layout[name] = Origin(
                keys, third, lambda *parts: torch.cat(parts), lambda fused: fused.chunk(3)
            )
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
            layout[name] = Origin(
                (key,), both, lambda table: table[0], lambda row: (_padded(row[None], 0, 1),)
            )
        elif name != "embeddings.corners":
            key = _as_spelt(prefix + _theirs(name, _OURS_TO_BERT), present)
            layout[name] = Origin((key,), shape)
    return layout


def official_layout(model: Shapes, present: Container[str], prefix: str = "") -> Layout:
    """A checkpoint of the authors."""
    own = "text_tower."
    tower = {name.removeprefix(own): s for name, s in model.items() if name.startswith(own)}
    layout = {
        name: Origin((prefix + _theirs(name, _OURS_TO_OFFICIAL),), shape)
        for name, shape in model.items()
        if not name.startswith(own)
    }
    text = dict(bert_layout(tower, present, f"{prefix}text.transformer."))
    text |= _words_and_corners(tower, text)
    return layout | {own + name: origin for name, origin in text.items()}


def hf_layout(model: Shapes, present: Container[str]) -> Layout:
    """A folder in the style of Hugging Face: the towers named as transformers names them, where
    it has such a one, side by side.

    An image tower with another stem or pool keeps timm's names.
    """
    layout: dict[str, Origin] = {}
    towers = {
        own: {name.removeprefix(own): s for name, s in model.items() if name.startswith(own)}
        for own in ("image_tower.", "text_tower.")
    }
    image, text = towers.values()
    is_vit = "patch_embed.proj.weight" in image and "cls_token" in image
    named = vit_layout(image, "vision_model.") if is_vit else timm_layout(image)
    for name, origin in named.items():
        keys = origin.keys if is_vit else (f"vision_model.{name}",)
        layout[f"image_tower.{name}"] = replace(origin, keys=keys)
    of_text = dict(bert_layout(text, present, "text_model."))
    for name, origin in (of_text | _words_and_corners(text, of_text)).items():
        layout[f"text_tower.{name}"] = origin
    for name, shape in model.items():
        if not name.startswith(tuple(towers)):
            layout[name] = Origin((_theirs(name, _OURS_TO_HF),), shape)
    return layout


def _words_and_corners(tower: Shapes, layout: Layout) -> dict[str, Origin]:
    """One table for both, the corner tokens behind the word pieces."""
    words = layout["embeddings.words.weight"]
    num_words, width = words.shape
    num_corners = tower["embeddings.corners"][0]
    table = torch.Size([num_words + num_corners, width])
    return {
        "embeddings.words.weight": Origin(
            words.keys, table, lambda t: t[:num_words], lambda w: (_padded(w, 0, num_corners),)
        ),
        "embeddings.corners": Origin(
            words.keys, table, lambda t: t[num_words:], lambda c: (_padded(c, num_words, 0),)
        ),
    }


def _padded(rows: Tensor, above: int, below: int) -> Tensor:
    """Zeros above and below."""
    return torch.nn.functional.pad(rows, (0, 0, above, below))


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


def rearranged(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Their tensors, of ours: the inverse of `arranged`."""
    theirs: dict[str, Tensor] = {}
    for name, origin in layout.items():
        for key, part in zip(origin.keys, origin.unmake(state[name]), strict=True):
            theirs[key] = theirs[key] + part if key in theirs else part.contiguous()
    return theirs


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
