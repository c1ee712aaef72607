"""The images of a data set, to be searched with features of texts.

It is made of a set of image features (see `lotlip.data.features`), which all models with the same
image tower share: another of them costs a pass over the features, not over the images.

Shape suffixes: N images, Q texts that are searched with, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from lotlip.data.features import read_feature
from lotlip.data.manifest import Manifest
from lotlip.data.sample import from_members
from lotlip.data.shards import DamagedShardError, read_shard
from lotlip.data.store import Store
from lotlip.errors import DataError
from lotlip.evaluate.embed import project_images
from lotlip.model import LoTLIP

_AT_ONCE = 4096


@dataclass(frozen=True)
class Found:
    """An image that was found."""

    place: int
    """In the index."""
    score: float
    """Cosine of its feature and the text's."""


@dataclass(frozen=True, kw_only=True)
class ImageIndex:
    """The images that could be read, in the order of the data set."""

    features_ND: Tensor
    """Unit vectors, on the CPU."""
    numbers: tuple[int, ...]
    """The sample of the data set that each image is of."""
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    """Short ones."""
    num_unreadable: int
    """Samples that are left out: damaged, or without an image that decodes."""

    @cached_property
    def mean_D(self) -> Tensor:
        """Of the features."""
        return self.features_ND.mean(dim=0)

    def __len__(self) -> int:
        return len(self.numbers)

    def search(self, texts_QD: Tensor, num_hits: int) -> list[list[Found]]:
        """The best images for each text, best first; all of them if there are fewer."""
        top = torch.topk(texts_QD @ self.features_ND.T, min(num_hits, len(self)), dim=1)
        return [
            [Found(place, score) for place, score in zip(places, scores, strict=True)]
            for places, scores in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def above_average(self, texts_QD: Tensor, places: list[int]) -> Tensor:
        """How much more each text fits these images than all of them on average, [Q, places].

        Cosines of two texts can't be compared: a text may fit every image better than another
        does. What they exceed their averages by can.
        """
        return texts_QD @ (self.features_ND[places] - self.mean_D).T


def read_index(model: LoTLIP, features: Store, manifest: Manifest) -> ImageIndex:
    """The index of the data set whose image features lie in a store.

    `manifest` is that of the features. Raises: DataError; also if no image could be read.
    """
    numbers: list[int] = []
    keys: list[str] = []
    captions: list[str] = []
    parts: list[Tensor] = []
    samples = enumerate(raw for shard in manifest.shards for raw in read_shard(features, shard))
    while group := list(islice(samples, _AT_ONCE)):
        pooled: list[np.ndarray] = []
        for number, raw in group:
            if isinstance(raw, DamagedShardError):
                raise raw  # of features: they can be computed again
            try:
                sample = from_members(raw)
            except DataError:
                continue  # of images; it was told when they were read
            pooled.append(read_feature(sample.image))
            numbers.append(number)
            keys.append(sample.key)
            captions.append(sample.short)
        if pooled:
            parts.append(project_images(model, torch.from_numpy(np.stack(pooled))))
    if not parts:
        raise DataError(f"{features.uri}: not one image of the data set could be read")
    return ImageIndex(
        features_ND=torch.cat(parts),
        numbers=tuple(numbers),
        keys=tuple(keys),
        captions=tuple(captions),
        num_unreadable=manifest.num_samples - len(numbers),
    )
