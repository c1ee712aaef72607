"""How well captions fit their images, as a trained model sees it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch

from lotlip.evaluate.embed import best_device, embed_images, embed_texts
from lotlip_platform.registry import fetch

_AT_ONCE = 128


class CaptionFit:
    """A model that tells the cosine of an image's features and a caption's."""

    def __init__(self, model: str) -> None:
        """Loads the export folder at an address. Raises: CheckpointError, DataError."""
        self._model = fetch(model).to(best_device()).eval()

    def similarities(self, pairs: Iterable[tuple[bytes, str]]) -> list[float]:
        """Of encoded images, which decode, and captions, in their order."""
        found: list[float] = []
        left = iter(pairs)
        while batch := list(itertools.islice(left, _AT_ONCE)):
            images_ND = embed_images(self._model, [image for image, _ in batch])
            texts_ND = embed_texts(self._model, [caption for _, caption in batch])
            found += torch.einsum("nd,nd->n", images_ND, texts_ND).tolist()
        return found
