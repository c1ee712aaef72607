"""A CLIP and a SigLIP of a few thousand random weights, in the layout of the Hugging Face hub."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

CONTEXT_LENGTH = 40
_LETTERS = string.ascii_lowercase + string.digits + ".,"
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_VISION = {**_TOWER, "image_size": 32, "patch_size": 16}


def make_tiny_clip(folder: Path) -> Path:
    """Its tokenizer knows letters only."""
    pieces = [
        *_LETTERS,
        *(f"{letter}</w>" for letter in _LETTERS),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    config = CLIPConfig(
        text_config={
            **_TOWER,
            "vocab_size": len(vocab),
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": vocab["<|startoftext|>"],
            "eos_token_id": vocab["<|endoftext|>"],
        },
        vision_config=_VISION,
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


def make_tiny_siglip(folder: Path) -> Path:
    """SigLIP's towers with SigLIP 2's tokenizer, which needs no sentencepiece."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *_LETTERS]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    config = SiglipConfig(
        text_config={
            **_TOWER,
            "vocab_size": len(vocab),
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": vocab["<bos>"],
            "eos_token_id": vocab["<eos>"],
        },
        vision_config=_VISION,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SiglipModel(config).save_pretrained(folder)
    SiglipProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=Siglip2Tokenizer(
            vocab=vocab,
            merges=[],
            padding_side="right",
            model_input_names=["input_ids"],  # as all published ones
        ),
    ).save_pretrained(folder)
    return folder
