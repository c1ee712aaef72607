"""A model as others keep theirs: a folder in the style of Hugging Face, or the authors' file.

The folder in the style of Hugging Face holds

    model.safetensors          `vision_model.*` and `text_model.*` as transformers names a ViT and a
                               BERT, the corner tokens behind the word pieces; the projections
    config.json                `vision_config` and `text_config` as transformers has them, and ours
    vocab.txt, tokenizer_config.json, preprocessor_config.json, README.md

`lotlip.load` reads it as it reads our own. What transformers can load of it are the towers: it has
neither corner tokens nor the tokens that stand between our sentences.
"""

from __future__ import annotations

import io
import json
from typing import Any

import safetensors.torch
import torch

from lotlip.configuration import to_dict
from lotlip.errors import CheckpointError
from lotlip.model.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from lotlip.model.layouts import hf_layout, official_layout, rearranged
from lotlip.model.lotlip import LoTLIP

HF_MODEL_TYPE = "lotlip"


def hf_files(model: LoTLIP, card: str = "") -> dict[str, bytes]:
    """The files by name; `card` is Markdown for the README. Raises: CheckpointError."""
    if model.tokenizer is None:
        raise CheckpointError("a model without tokenizer cannot be exported")
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    shapes = {name: value.shape for name, value in state.items()}
    weights = rearranged(state, hf_layout(shapes, ()))
    size_px = model.config.image.image_size_px
    return {
        **model.tokenizer.to_files(),
        "model.safetensors": safetensors.torch.save(weights, {"format": "pt"}),
        "config.json": _json(_config(model.config)),
        "preprocessor_config.json": _json(
            {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": size_px},
                "crop_size": {"height": size_px, "width": size_px},
                "resample": 3,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            }
        ),
        "README.md": f"{_FRONT_MATTER}\n{card}\n".encode(),
    }


def official_file(model: LoTLIP) -> bytes:
    """The authors' `model.pt`, which `convert_official` reads again.

    Raises: CheckpointError for what their code can't compute.
    """
    config = model.config
    if not config.text.corner_mask:
        raise CheckpointError("the authors' code has no model.text.corner_mask=false")
    if (config.image.stem, config.image.pool) != ("patch", "token"):
        raise CheckpointError(
            f"the authors' code has no image tower with model.image.stem={config.image.stem} and "
            f"model.image.pool={config.image.pool}: patch and token only"
        )
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    shapes = {name: value.shape for name, value in state.items()}
    buffer = io.BytesIO()
    torch.save(rearranged(state, official_layout(shapes, ())), buffer)
    return buffer.getvalue()


_FRONT_MATTER = """---
library_name: lotlip
pipeline_tag: zero-shot-image-classification
tags: [image-text-retrieval, long-captions, lotlip]
---
"""


def _config(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": HF_MODEL_TYPE,
        "architectures": ["LoTLIP"],
        "projection_dim": config.embed_dim,
        "num_corner_tokens": config.text.num_corner_tokens,
        "vision_config": _vision(config.image),
        "text_config": _text(config.text),
        "lotlip": to_dict(config),
    }


def _vision(config: ImageTowerConfig) -> dict[str, Any]:
    return {
        "model_type": "vit",
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": 4 * config.width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": config.image_size_px,
        "patch_size": config.patch_size_px,
        "num_channels": 3,
        "qkv_bias": True,
    }


def _text(config: TextTowerConfig) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": config.vocab_size + config.num_corner_tokens,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": 4 * config.width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": config.num_positions,
        "type_vocab_size": 2,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "pad_token_id": 0,
    }


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
