"""A CLIP of a few thousand random weights, in the layout of the Hugging Face hub."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

CONTEXT_LENGTH = 40


def make_tiny_clip(folder: Path) -> Path:
    """Its tokenizer knows letters only."""
    letters = string.ascii_lowercase + string.digits + ".,"
    pieces = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(vocab),
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": vocab["<|startoftext|>"],
            "eos_token_id": vocab["<|endoftext|>"],
        },
        vision_config={**tower, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    CLIPProcessor(
        image_processor=images, tokenizer=CLIPTokenizer(vocab=vocab, merges=[])
    ).save_pretrained(folder)
    return folder
