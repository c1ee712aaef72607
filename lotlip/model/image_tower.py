"""The image tower: a vision transformer with pre-norm blocks.

Shape suffixes: B images, C channels, H and W pixels, L tokens (patches, and the class token),
D width.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lotlip.model.attention import attend
from lotlip.model.config import ImageTowerConfig
from lotlip.model.packing import Group
from lotlip.model.recomputing import through

CONV_STEM_CHANNELS = (3, 24, 48, 64)
"""Behind each halving of the image, up to the last one, which gives the width."""

_NORM_EPS = 1e-6  # timm's


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BLD: Tensor, *, read: bool = False) -> Tensor:
        """What each token sees of all; or, if no more is `read`, the first: [B, 1, D]."""
        width = tokens_BLD.shape[2]
        if read:
            weights, biases = self.qkv.weight.split(width), self.qkv.bias.split(width)
            query = F.linear(tokens_BLD[:, :1], weights[0], biases[0])
            key, value = (F.linear(tokens_BLD, weights[i], biases[i]) for i in (1, 2))
        else:
            query, key, value = self.qkv(tokens_BLD).split(width, dim=2)
        num_images, length, _ = tokens_BLD.shape
        all_alike = [Group(num_texts=num_images, length=length, num_corners=0)]
        mixed = attend(
            query.flatten(0, 1),
            key.flatten(0, 1),
            value.flatten(0, 1),
            all_alike,
            num_heads=self.num_heads,
            read=read,
        )
        return self.proj(mixed.unflatten(0, query.shape[:2]))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and added to its input."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, tokens_BLD: Tensor, *, read: bool = False) -> Tensor:
        """The tokens [B, L, D] again; or, if no more is `read`, the first: [B, 1, D]."""
        mixed = self.attn(self.norm1(tokens_BLD), read=read)
        tokens_BLD = (tokens_BLD[:, :1] if read else tokens_BLD) + mixed
        hidden = F.gelu(self.mlp["fc1"](self.norm2(tokens_BLD)))
        return tokens_BLD + self.mlp["fc2"](hidden)


class PatchStem(nn.Module):
    """One strided convolution: each patch becomes a token."""

    def __init__(self, patch_size_px: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size_px, stride=patch_size_px)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.proj(images_BCHW)


class ConvStem(nn.Module):
    """Four 3x3 convolutions of stride 2: 16 x 16 pixels become a token.

    Norms are per image: statistics over a worker's batch would depend on the number of workers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = (*CONV_STEM_CHANNELS, width)
        for num_in, num_out in itertools.pairwise(channels[:-1]):
            layers += [
                nn.Conv2d(num_in, num_out, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(8, num_out),
                nn.ReLU(),
            ]
        layers.append(nn.Conv2d(channels[-2], width, 3, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.layers(images_BCHW)


class ImageTower(nn.Module):
    """Images to one feature each, before projection and normalisation."""

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        stem = ConvStem(width) if config.stem == "conv" else PatchStem(config.patch_size_px, width)
        self.patch_embed = stem
        has_token = config.pool == "token"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if has_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches + has_token, width))
        self.blocks = nn.ModuleList(
            [Block(width, config.num_heads) for _ in range(config.num_layers)]
        )
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.recomputes = False
        """Whether backward computes the blocks again, rather than keep what it needs of them."""
        self._init_weights()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """[B, 3, H, W], normalised to [-1, 1], to [B, D]."""
        tokens_BLD = self.patch_embed(images_BCHW).flatten(2).transpose(1, 2)
        if self.cls_token is not None:  # which comes first, and is all that is read in the end
            cls_BLD = self.cls_token.expand(len(tokens_BLD), -1, -1)
            tokens_BLD = torch.cat([cls_BLD, tokens_BLD], dim=1)
        tokens_BLD = tokens_BLD + self.pos_embed
        *blocks, last = self.blocks
        for block in blocks:
            tokens_BLD = through(block, tokens_BLD, recomputes=self.recomputes)
        tokens_BLD = last(tokens_BLD, read=self.cls_token is not None)
        return self.norm(tokens_BLD).mean(dim=1)

    def locked_modules(self) -> list[nn.Module]:
        """The modules that `config.locked_layers` keeps as they are."""
        locked = self.config.locked_layers
        if locked == -1:
            return [self]
        return [self.patch_embed, *self.blocks[:locked]] if locked else []

    def locked_parameters(self) -> list[nn.Parameter]:
        """Every parameter that does not learn."""
        found = [p for module in self.locked_modules() for p in module.parameters()]
        if self.config.locked_layers > 0:
            found += [self.pos_embed] + ([self.cls_token] if self.cls_token is not None else [])
        return found

    def _init_weights(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
