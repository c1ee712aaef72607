"""Whether captioners speak of what is in the images, and of the same: asked of a trained model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lotlip.data.manifest import read_manifest
from lotlip.data.sample import Sample
from lotlip.data.shards import read_samples
from lotlip.errors import ConfigError
from lotlip.evaluate.embed import best_device, embed_images, embed_texts
from lotlip.model import LoTLIP
from lotlip_platform.storage import open_store


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Cosines of features, means over samples."""

    num_samples: int
    with_image: Mapping[str, float]
    """Of each captioner's captions with their images."""
    with_others: Mapping[str, float]
    """The same with images of other samples: what a caption gets that says nothing of its own."""
    between: Mapping[str, Mapping[str, float]]
    """Of two captioners' captions of the same image."""


def agreement(uri: str, model: LoTLIP, *, num_samples: int) -> Agreement:
    """Over the first samples that have a caption by each captioner.

    Raises: ConfigError if there are fewer than two; DataError at a bad sample.
    """
    store = open_store(uri)
    manifest = read_manifest(store)
    names = [name.removeprefix("long.") for name in manifest.captions if name.startswith("long.")]
    has_all = (
        sample
        for sample in read_samples(store, manifest)
        if all(sample.long.get(name, "").strip() for name in names)
    )
    samples = list(itertools.islice(has_all, num_samples))
    if len(samples) < 2 or not names:
        raise ConfigError(
            f"{uri}: the agreement of captioners takes 2 samples with a caption by each of "
            f"{', '.join(names) or 'one or more'}; there are {len(samples)}"
        )
    return _agreement(model.to(best_device()).eval(), samples, names)


def _agreement(model: LoTLIP, samples: list[Sample], names: list[str]) -> Agreement:
    images_ND = embed_images(model, [s.image for s in samples], [s.key for s in samples])
    texts = {name: embed_texts(model, [s.long[name] for s in samples]) for name in names}
    others_ND = images_ND.roll(1, dims=0)
    return Agreement(
        num_samples=len(samples),
        with_image={name: _cosine(texts_ND, images_ND) for name, texts_ND in texts.items()},
        with_others={name: _cosine(texts_ND, others_ND) for name, texts_ND in texts.items()},
        between={
            one: {other: _cosine(texts[one], texts[other]) for other in names} for one in names
        },
    )


def _cosine(one_ND: Tensor, other_ND: Tensor) -> float:
    """Mean over samples; features have unit length."""
    return round(float(torch.einsum("nd,nd->n", one_ND, other_ND).mean()), 4)
