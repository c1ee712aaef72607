"""A LLaVA of a few thousand weights, drawn at random: the path is real, the words are not."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

_SIDE_PX, _PATCH_PX, _WIDTH = 32, 8, 32
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_WORDS = (
    *("the", "a", "image", "shows", "red", "blue", "green", "castle", "hill", "garden", "before"),
    *("it", "stands", "lake", "of", "on", "with", "two", "trees", "small", "boat", "behind", "."),
)
_TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)


def make_tiny_llava(folder: Path) -> Path:
    """Save model and processor as transformers does; the folder."""
    words = {word: place for place, word in enumerate((*_SPECIAL, *_WORDS))}
    tokens = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": _SIDE_PX}, crop_size={"height": _SIDE_PX, "width": _SIDE_PX}
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=_PATCH_PX,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    vision = CLIPVisionConfig(
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=_SIDE_PX,
        patch_size=_PATCH_PX,
        projection_dim=_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,  # or it says the same of all images
        pad_token_id=words["<pad>"],
        bos_token_id=words["<s>"],
        eos_token_id=words["</s>"],
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=words["<image>"])
    config.pad_token_id = words["<pad>"]
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = words["</s>"]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
