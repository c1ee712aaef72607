"""How many floating-point operations a training step takes by its model, and what a GPU can do.

Counted are the matrix products and convolutions of the towers and projections, forward and
backward, over the tokens that are computed. What is computed twice to save memory counts once
(model FLOPs, Chowdhery et al. 2022, appendix B).

Shape suffixes: B images, S captions.
"""

from __future__ import annotations

import itertools
import re

import torch
from torch import Tensor

from lotlip.model.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from lotlip.model.image_tower import CONV_STEM_CHANNELS

_FORWARD, _LEARNING = 1, 3
"""Backward costs twice the forward pass where something learns."""
_PEAK_BF16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Dense tensor-core operations a second of data centre cards, by their makers' data sheets; of
names that contain each other, the longer one first."""


def step_flops(
    config: ModelConfig, lengths_BS: Tensor, *, short_first: bool, pixels: bool
) -> float:
    """Of a batch with captions of so many tokens, control and corner tokens included.

    `pixels` says whether images are encoded, or features of the locked tower were read.
    """
    num_images = len(lengths_BS)
    image, text = config.image, config.text
    total = num_images * image_flops(image) if pixels else 0.0
    if image.projection:
        total += num_images * _LEARNING * 2 * image.width * config.embed_dim
    m = text.num_corner_tokens
    has_corners = torch.ones_like(lengths_BS)
    has_corners[:, : int(short_first)] = 0
    num_corners = m * has_corners.double()
    there = num_corners if text.corner_mask else torch.full_like(num_corners, m)
    rows = lengths_BS.double() - m + there
    total += float(text_flops(text, rows=rows, num_read=1 + there).sum())
    num_features = float((1 + num_corners).sum())
    return total + _LEARNING * 2 * num_features * text.width * config.embed_dim


def image_flops(config: ImageTowerConfig) -> float:
    """Of one image, backward included as far as the tower learns."""
    width, tokens = config.width, config.num_patches + (config.pool == "token")
    num_read = 1 if config.pool == "token" else tokens
    block = tokens * 24 * width**2 + 4 * tokens**2 * width
    last = tokens * 4 * width**2 + num_read * (20 * width**2 + 4 * tokens * width)
    locked = config.num_layers if config.locked_layers == -1 else config.locked_layers
    of_blocks = [block] * (config.num_layers - 1) + [last]
    total = _FORWARD * sum(of_blocks[:locked]) + _LEARNING * sum(of_blocks[locked:])
    first, *others = _stem_flops(config)
    # Nobody asks for the gradient of the pixels.
    return total + ((first + sum(others)) if locked else (2 * first + _LEARNING * sum(others)))


def text_flops(config: TextTowerConfig, *, rows: Tensor, num_read: Tensor) -> Tensor:
    """Of texts of so many rows, of which so many are read, backward included."""
    width = config.width
    layer = rows * 24 * width**2 + 4 * rows**2 * width
    last = rows * 4 * width**2 + num_read * 20 * width**2 + 4 * num_read * rows * width
    pooler = num_read * 2 * width**2
    # Gradients go through locked layers if corner tokens, which always learn, are below them.
    through = 2 * _FORWARD if config.num_corner_tokens else _FORWARD
    locked = config.num_layers if config.locked_layers == -1 else config.locked_layers
    of_layers = [layer] * (config.num_layers - 1) + [last]
    total = through * sum(of_layers[:locked]) + _LEARNING * sum(of_layers[locked:])
    return total + (through if config.locked_layers == -1 else _LEARNING) * pooler


def peak_flops(device: torch.device) -> float:
    """Operations a second of the device in bf16; 0 where that isn't known."""
    if device.type != "cuda":
        return 0.0
    return peak_of_card(torch.cuda.get_device_name(device))


def peak_of_card(name: str) -> float:
    """By the name that its driver gives it; 0 for cards that aren't known."""
    found = (peak for card, peak in _PEAK_BF16.items() if re.search(rf"\b{card}\b", name))
    return next(found, 0.0)


def _stem_flops(config: ImageTowerConfig) -> list[float]:
    """Of each convolution, forward."""
    if config.stem == "patch":
        return [config.num_patches * 2 * 3 * config.patch_size_px**2 * config.width]
    sides = [config.image_size_px // 2**halvings for halvings in range(1, 5)]
    pairs = itertools.pairwise((*CONV_STEM_CHANNELS, config.width))
    return [
        side**2 * 2 * 9 * n_in * n_out for side, (n_in, n_out) in zip(sides, pairs, strict=True)
    ]
