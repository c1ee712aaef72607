"""Images and texts to features, in batches, shared between the workers.

Shape suffixes: N items, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lotlip import distributed
from lotlip.errors import DataError
from lotlip.images import centre_crop, decode, normalise
from lotlip.model import LoTLIP

T = TypeVar("T")
_IMAGES_AT_ONCE = 128
_TEXTS_AT_ONCE = 256


def best_device() -> torch.device:
    """Where a model embeds fastest on this machine."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def embed_images(
    model: LoTLIP, encoded: Sequence[bytes], keys: Sequence[str] | None = None
) -> Tensor:
    """Features of encoded images, [N, D] in their order, on the CPU. Raises: as `pool_images`."""
    return project_images(model, pool_images(model, encoded, keys))


@torch.no_grad()
def embed_pixels(model: LoTLIP, pixels: Sequence[np.ndarray]) -> Tensor:
    """Features, [N, D] on the CPU, of images as `centre_crop` makes them for this model."""
    pooled = _shared(model, pixels, partial(_pool, model), _IMAGES_AT_ONCE, _width(model))
    return project_images(model, pooled)


@torch.no_grad()
def project_images(model: LoTLIP, pooled_ND: Tensor) -> Tensor:
    """Features of images, [N, D], of what `pool_images` made of them."""
    return model.project_image(pooled_ND.to(_device(model))).cpu()


@torch.no_grad()
def pool_images(
    model: LoTLIP, encoded: Sequence[bytes], keys: Sequence[str] | None = None
) -> Tensor:
    """What the image tower makes of encoded images, [N, its width] in their order, on the CPU.

    Raises: DataError that names the key (without `keys` the position) of one that doesn't decode.
    """
    size_px = model.config.image.image_size_px

    def pixels_of(place: int) -> np.ndarray:
        try:
            return centre_crop(decode(encoded[place]), size_px)
        except DataError as error:
            raise DataError(f"{keys[place] if keys else f'image {place}'}: {error}") from error

    def embed(batch: Sequence[int]) -> Tensor:
        return _pool(model, [pixels_of(place) for place in batch])

    return _shared(model, range(len(encoded)), embed, _IMAGES_AT_ONCE, _width(model))


@torch.no_grad()
def embed_texts(
    model: LoTLIP, texts: Sequence[str], *, official: bool = False, context_length: int = 0
) -> Tensor:
    """Features of texts of any length, [N, D] in their order, on the CPU.

    `official` has them split as the authors' tokenizer does, for numbers to be compared with
    theirs. `context_length` is the most tokens that are read, up to the model's positions; 0: as
    many as it was trained with.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None, "a model that was loaded or trained has its tokenizer"
    if context_length:
        tokenizer = tokenizer.adapted(tokenizer.num_corner_tokens, context_length)
    # Texts of like length together: a batch is padded to its longest.
    by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))

    def embed(batch: Sequence[str]) -> Tensor:
        ids = torch.from_numpy(tokenizer(batch, official=official))
        return model.encode_text(ids.to(_device(model)))

    in_order = [texts[index] for index in by_length]
    features_ND = _shared(model, in_order, embed, _TEXTS_AT_ONCE, model.config.embed_dim)
    restored_ND = torch.empty_like(features_ND)
    restored_ND[by_length] = features_ND
    return restored_ND


def _pool(model: LoTLIP, pixels: Sequence[np.ndarray]) -> Tensor:
    return model.image_tower(normalise(torch.from_numpy(np.stack(pixels)).to(_device(model))))


def _width(model: LoTLIP) -> int:
    return model.config.image.width


def _device(model: LoTLIP) -> torch.device:
    return model.logit_scale.device


def _shared(
    model: LoTLIP,
    items: Sequence[T],
    embed: Callable[[Sequence[T]], Tensor],
    at_once: int,
    width: int,
) -> Tensor:
    """Every worker embeds a share of the batches; all get all features: [N, width]."""
    was_training = model.training
    model.eval()
    batches = list(_batches(items, at_once))
    mine = [embed(batch).float().cpu() for batch in batches[distributed.rank() :: _world()]]
    model.train(was_training)
    shares = distributed.gather_objects(mine)
    features = [shares[index % _world()][index // _world()] for index in range(len(batches))]
    return torch.cat(features) if features else torch.empty(0, width)


def _world() -> int:
    return distributed.world_size()


def _batches(items: Sequence[T], at_once: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), at_once):
        yield items[start : start + at_once]
