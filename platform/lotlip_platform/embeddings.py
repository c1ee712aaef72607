"""Features of a benchmark's images and texts: made piece by piece, kept, and not made again.

CACHE/WEIGHTS/PIECE.npz             features of a piece, named by all that they depend on

A piece that is written is whole: an evaluation that was ended goes on behind the last one, and
another benchmark or protocol that asks the same of the same weights finds it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lotlip.data.store import Store
from lotlip.errors import ClusterError, DataError
from lotlip.evaluate.encoders import Encoder
from lotlip.evaluate.published.sets import Images
from lotlip.evaluate.zero_shot import classifier
from lotlip_platform.eval_models import encoder_of
from lotlip_platform.storage import open_store

_IMAGES, _TEXTS, _CLASSES = 500, 500, 20
"""In a piece; of classes each has up to 80 prompts."""
_DAMAGE = (
    *(ValueError, KeyError, EOFError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What reading a damaged piece leads to."""
_MADE_AS = 2
"""Goes up with each change of how images or texts are read, for which features are made anew."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How texts are read: as of `Encoder.embed_texts`."""

    context_length: int
    official: bool


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is embedded, and kept, together."""

    name: str
    size: int
    """Images, texts or classes."""
    images: Images | None = None
    texts: Sequence[str] = ()
    prompts: Sequence[Sequence[str]] = ()
    """Of classes; each becomes one feature."""
    reading: Reading | None = None


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What became of a piece, or of several."""

    features: Tensor
    """[N, D] float32."""
    is_cut: Tensor
    """Which of the texts, or of which class a prompt, was longer than what is read: [N]."""
    sums: bytes
    """SHA-256 of each image, one after another; of texts nothing."""


Embed = Callable[[Sequence[Piece]], Iterator[int]]
"""Embeds pieces and keeps them; the size of each, as they get ready."""
Told = Callable[[int, int], None]
"""Gets how many of how many are embedded."""


def image_pieces(images: Images) -> list[Piece]:
    parts = [images.part(start, start + _IMAGES) for start in range(0, len(images.names), _IMAGES)]
    return [
        Piece(
            name=_name("images", [*part.names], [*part.versions]), size=len(part.names), images=part
        )
        for part in parts
    ]


def text_pieces(texts: Sequence[str], reading: Reading) -> list[Piece]:
    parts = [list(texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)]
    return [
        Piece(
            name=_name("texts", part, *astuple(reading)),
            size=len(part),
            texts=part,
            reading=reading,
        )
        for part in parts
    ]


def class_pieces(prompts: Sequence[Sequence[str]], reading: Reading) -> list[Piece]:
    parts = [
        [list(one) for one in prompts[start : start + _CLASSES]]
        for start in range(0, len(prompts), _CLASSES)
    ]
    return [
        Piece(
            name=_name("classes", part, *astuple(reading)),
            size=len(part),
            prompts=part,
            reading=reading,
        )
        for part in parts
    ]


class FeatureCache:
    """The features of one model."""

    def __init__(self, store: Store, digest: str, embed: Embed) -> None:
        self._store, self._embed = store.at(digest), embed

    def embed(self, pieces: Sequence[Piece], told: Told) -> None:
        """Those that aren't there yet. Raises: LotlipError; what was embedded by then is kept."""
        wanted = {piece.name: piece for piece in pieces}
        there = set(self._store.list())
        missing = [piece for name, piece in wanted.items() if f"{name}.npz" not in there]
        total = sum(piece.size for piece in wanted.values())
        done = total - sum(piece.size for piece in missing)
        told(done, total)
        if not missing:
            return
        for size in self._embed(missing):
            done += size
            told(done, total)
        there = set(self._store.list())
        if lost := [piece.name for piece in missing if f"{piece.name}.npz" not in there]:
            raise DataError(
                f"{self._store.uri} lacks {len(lost)} pieces after writing: with Ray on several "
                "machines give --cache s3://... or a folder that all of them see"
            )

    def features(self, pieces: Sequence[Piece]) -> Embedded:
        """Of pieces that are there, in their order; one that is damaged is made anew.

        Raises: DataError if it can't be.
        """
        found = [self._read(piece) or self._made_anew(piece) for piece in pieces]
        return Embedded(
            features=torch.cat([one.features for one in found]),
            is_cut=torch.cat([one.is_cut for one in found]),
            sums=b"".join(one.sums for one in found),
        )

    def _made_anew(self, piece: Piece) -> Embedded:
        for _ in self._embed([piece]):
            pass
        if (made := self._read(piece)) is None:
            raise DataError(
                f"{self._store.uri}/{piece.name}.npz is damaged as soon as it is written"
            )
        return made

    def _read(self, piece: Piece) -> Embedded | None:
        """None if it is damaged."""
        name = f"{piece.name}.npz"
        try:
            with np.load(io.BytesIO(self._store.read(name)), allow_pickle=False) as kept:
                return Embedded(
                    features=torch.from_numpy(kept["features"]),
                    is_cut=torch.from_numpy(kept["is_cut"]),
                    sums=kept["sums"].tobytes(),
                )
        except _DAMAGE:
            return None


def embed_here(encoder: Encoder, store: Store) -> Embed:
    """By a model in this process."""

    def embed(pieces: Sequence[Piece]) -> Iterator[int]:
        for piece in pieces:
            keep(encoder, store.at(encoder.digest), piece)
            yield piece.size

    return embed


def keep(encoder: Encoder, store: Store, piece: Piece) -> None:
    """Embed a piece and write it to the store of these weights. Raises: DataError."""
    made = _embedded(encoder, piece)
    if not made.features.isfinite().all():
        what = "images" if piece.images is not None else "texts"
        raise DataError(f"a feature of {what} is not finite: look at the model's weights")
    buffer = io.BytesIO()
    np.savez(
        buffer,
        features=made.features.numpy(),
        is_cut=made.is_cut.numpy(),
        sums=np.frombuffer(made.sums, dtype=np.uint8),
    )
    store.write(f"{piece.name}.npz", buffer.getvalue())


def embed_on_ray(
    model: str, digest: str, store: Store, num_workers: int, tracking_uri: str
) -> Embed:
    """By `num_workers` workers of the cluster, on its GPUs, which they may share, if it has some.

    Ray is connected. `tracking_uri` is the MLflow server of models that are named there.
    """
    import ray

    from lotlip_platform.cluster import store_environment
    from lotlip_platform.ray_data import Unseen, quiet_ray_data, results

    tracked_at = {"MLFLOW_TRACKING_URI": tracking_uri}
    of_mlflow = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    environment = Unseen({**store_environment(), **of_mlflow, **tracked_at})

    def embed(pieces: Sequence[Piece]) -> Iterator[int]:
        quiet_ray_data()
        gpus = _gpus_each(int(ray.cluster_resources().get("GPU", 0)), num_workers)
        rows = [{"piece": pickle.dumps(piece)} for piece in pieces]
        pool = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _EncoderActor,
            fn_constructor_args=(model, digest, store.uri, environment),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(
                size=min(num_workers, len(rows)), max_tasks_in_flight_per_actor=1
            ),
            num_gpus=gpus,
        )
        for text in results(pool):
            yield json.loads(text)

    return embed


def _gpus_each(num_gpus: int, num_workers: int) -> float:
    """What of a GPU each worker gets, so that all of them run: 0 if there is none."""
    return 1 / math.ceil(num_workers / num_gpus) if num_gpus else 0


class _EncoderActor:
    """Embeds pieces, one after another, with a model that it keeps."""

    def __init__(self, model: str, digest: str, store: str, environment: Any) -> None:
        os.environ.update(environment.values)
        self._model, self._digest = model, digest
        self._store = open_store(store).at(digest)
        self._encoder: Encoder | None = None

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        from lotlip_platform.ray_data import result_of

        piece: Piece = pickle.loads(batch["piece"][0])  # noqa: S301 - our own
        return result_of(lambda: json.dumps(self._keep(piece)))

    def _keep(self, piece: Piece) -> int:
        if self._encoder is None:
            encoder = encoder_of(self._model)
            if encoder.digest != self._digest:
                raise ClusterError(
                    f"{self._model} is another model on the workers: an alias that moved, or a "
                    "folder that they see differently; give a version, or an s3:// address"
                )
            self._encoder = encoder
        keep(self._encoder, self._store, piece)
        return piece.size


def _embedded(encoder: Encoder, piece: Piece) -> Embedded:
    if piece.images is not None:
        return _embedded_images(encoder, piece.images)
    assert piece.reading is not None, "texts are read in some way"
    how = asdict(piece.reading)
    if piece.texts:
        features, is_cut = encoder.embed_texts(piece.texts, **how)
        return Embedded(features=features, is_cut=is_cut, sums=b"")
    cut: list[Tensor] = []

    def encode(texts: Sequence[str]) -> Tensor:
        features, is_cut = encoder.embed_texts(texts, **how)
        cut.append(is_cut)
        return features

    features_CD = classifier(encode, piece.prompts)
    is_cut = torch.cat(cut).unflatten(0, (len(piece.prompts), -1)).any(dim=1)
    return Embedded(features=features_CD, is_cut=is_cut, sums=b"")


def _embedded_images(encoder: Encoder, images: Images) -> Embedded:
    encoded = images.read()
    try:
        features = encoder.embed_images(encoded, images.names)
    except DataError as error:
        raise DataError(
            f"an image of a benchmark is damaged, or was not fetched whole: {images.where}/{error}"
        ) from error
    return Embedded(
        features=features,
        is_cut=torch.zeros(len(encoded), dtype=torch.bool),
        sums=b"".join(hashlib.sha256(one).digest() for one in encoded),
    )


def _name(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_MADE_AS, *parts]).encode()).hexdigest()[:32]
