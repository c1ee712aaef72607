"""What a locked image tower makes of a data set's images, computed once and kept.

The features are a data set themselves, with the same shards, samples and captions; only that a
sample has `npy`, the tower's output, where the other has its image. So training on features
follows the very order of training on pixels, and the image tower, which learns nothing, costs
nothing (LiT, Zhai et al. 2022).

    000012.npy           float32 [D], before projection and normalisation
    000012.json          as in the data set
    000012.unreadable    instead of the npy: why the image could not be used

Shape suffixes: B images, H and W pixels, C channels, D width of the image tower.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch

from lotlip.configuration import to_dict
from lotlip.data.manifest import Shard
from lotlip.data.sample import FEATURE_SUFFIX, UNREADABLE, from_members
from lotlip.data.shards import DamagedShardError, RawSample, read_shard, write_members
from lotlip.data.store import Store
from lotlip.errors import DataError
from lotlip.images import centre_crop, decode, normalise
from lotlip.model.image_tower import ImageTower

_FORMAT = "features-v1"
_IMAGES_AT_ONCE = 64
_DONT_MATTER = ("pretrained", "locked_layers", "projection")


def tower_digest(tower: ImageTower) -> str:
    """Names exactly these weights and their preprocessing."""
    config = {k: v for k, v in to_dict(tower.config).items() if k not in _DONT_MATTER}
    hashed = hashlib.sha256(json.dumps([_FORMAT, config]).encode())
    for name, value in sorted(tower.state_dict().items()):
        hashed.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]


def write_feature_shard(source: Store, shard: Shard, target: Store, tower: ImageTower) -> Shard:
    """Write the features of one shard, on the device the tower is on.

    Images are cropped at the centre, as in evaluation. Raises: DataError if the shard is missing or
    of another size; nothing is written then.
    """

    def members() -> Iterator[Mapping[str, Any]]:
        samples = _whole(source, shard)
        while group := list(islice(samples, _IMAGES_AT_ONCE)):
            yield from _encoded(group, tower)

    return write_members(target, shard.name, members())


def _whole(source: Store, shard: Shard) -> Iterator[RawSample]:
    """As many samples as the manifest says; those that a damage took tell so."""
    for place, raw in enumerate(read_shard(source, shard)):
        if isinstance(raw, DamagedShardError):
            reason = str(raw).encode(errors="backslashreplace")
            yield {"__key__": f"lost-{place:08d}", UNREADABLE: reason}
        else:
            yield raw


def read_feature(encoded: bytes) -> np.ndarray:
    """A sample's feature [D]. Raises: DataError."""
    try:
        return np.load(io.BytesIO(encoded), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"feature does not load: {error}") from error


@torch.no_grad()
def _encoded(samples: list[RawSample], tower: ImageTower) -> Iterator[Mapping[str, Any]]:
    """The samples' members, with features for images."""
    pixels: dict[int, np.ndarray] = {}
    reasons: dict[int, str] = {}
    for place, raw in enumerate(samples):
        try:
            image = decode(from_members(raw).image)
            pixels[place] = centre_crop(image, tower.config.image_size_px)
        except DataError as error:
            reasons[place] = str(error)
    features: dict[int, np.ndarray] = {}
    if pixels:
        pixels_BHWC = torch.from_numpy(np.stack(list(pixels.values())))
        features_BD = tower(normalise(pixels_BHWC.to(tower.pos_embed.device))).float().cpu()
        features = dict(zip(pixels, features_BD.numpy(), strict=True))
    for place, raw in enumerate(samples):
        made = (
            {UNREADABLE: reasons[place].encode(errors="backslashreplace")}
            if place in reasons
            else {FEATURE_SUFFIX: _to_bytes(features[place])}
        )
        yield {"__key__": raw["__key__"], **made, "json": raw.get("json", b"")}


def _to_bytes(feature_D: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, feature_D, allow_pickle=False)
    return buffer.getvalue()
