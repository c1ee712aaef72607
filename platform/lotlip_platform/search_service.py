"""What a replica does for a request: checks it, embeds it with others, searches, answers."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from ray import serve

from lotlip.captions import split_sentences
from lotlip.data.sample import Sample
from lotlip.data.shards import read_sample
from lotlip.errors import DataError
from lotlip.images import centre_crop, decode
from lotlip_platform.batcher import Batcher
from lotlip_platform.registry import fetch
from lotlip_platform.search import cut_note
from lotlip_platform.search_api import NotFoundError, RequestError, build_app
from lotlip_platform.serve_config import ServeConfig
from lotlip_platform.serve_metrics import Metrics, merged
from lotlip_platform.served_model import (
    Answer,
    Follower,
    Indexed,
    Query,
    ServedModel,
    UploadedImage,
    answer,
    with_index,
)
from lotlip_platform.storage import open_store

_DECODING_THREADS = 2
_READING_THREADS = 8
_IMAGES_KEPT = 256


class SearchService:
    """A replica under Ray Serve: a model, its index, and the application that asks them."""

    def __init__(
        self, address: str, data: Indexed, config: ServeConfig, environment: Mapping[str, str]
    ) -> None:
        os.environ.update(environment)
        self.address, self.data, self.config = address, data, config
        self.metrics = Metrics()
        self._follower = Follower(
            address,
            lambda version: with_index(fetch(version), version, data, config),
            poll_s=config.poll_s,
            on_reload=self.metrics.reloaded,
        )
        self._decoding = ThreadPoolExecutor(_DECODING_THREADS, "decode")
        self._reading = ThreadPoolExecutor(_READING_THREADS, "read")
        store = open_store(data.uri)
        self._read = lru_cache(_IMAGES_KEPT)(
            lambda number: read_sample(store, data.manifest, number)
        )
        self._answer = Batcher(self._answer_together, config.max_batch_size)

    def __serve_build_asgi_app__(self) -> Any:
        return build_app(self)

    def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica that raises."""
        if not self._follower.is_alive:
            raise RuntimeError("nothing follows the alias any more")

    @property
    def served(self) -> ServedModel:
        return self._follower.served

    async def embed(self, texts: list[str], images: list[str]) -> dict[str, Any]:
        """Embeddings of texts, and of images in base64. Raises: RequestError."""
        most = self.config.max_items
        if not 1 <= len(texts) + len(images) <= most:
            raise RequestError(
                f"{len(texts)} texts and {len(images)} images: 1 to {most} are taken together"
            )
        for place, text in enumerate(texts):
            self._check_text(text, f"texts.{place}")
        size_px = self.served.model.config.image.image_size_px
        decoding = [
            self._on(self._decoding, self._uploaded, encoded, f"images.{place}", size_px)
            for place, encoded in enumerate(images)
        ]
        found = await self._answer(Query(texts=texts, images=await asyncio.gather(*decoding)))
        return {
            "version": found.served.version,
            "text_embeddings": found.texts_TD.tolist(),
            "image_embeddings": found.images_ID.tolist(),
        }

    async def search(self, text: str, num_hits: int) -> dict[str, Any]:
        """The images that fit a description. Raises: RequestError."""
        self._check_text(text, "text")
        if not 1 <= num_hits <= self.config.max_hits:
            raise RequestError(f"hits={num_hits} must be from 1 to {self.config.max_hits}")
        sentences = split_sentences(text)[: self.config.max_sentences]
        found = await self._answer(Query(texts=(text, *sentences), num_hits=num_hits))
        index = found.served.index
        places = [hit.place for hit in found.hits]
        excess_SH = index.above_average(found.texts_TD[1:], places)
        return {
            "version": found.served.version,
            "sentences": sentences,
            "note": cut_note(found.served.model, text, "the description"),
            "hits": [
                {
                    "key": index.keys[hit.place],
                    "caption": index.captions[hit.place],
                    "image": f"v1/images/{index.numbers[hit.place]}?of={self.data.manifest.digest}",
                    "score": hit.score,
                    "sentence": int(excess_SH[:, at].argmax()),
                    "sentence_scores": excess_SH[:, at].tolist(),
                }
                for at, hit in enumerate(found.hits)
            ],
        }

    async def image(self, number: int) -> Sample:
        """A sample of the data set. Raises: NotFoundError, DataError."""
        if not 0 <= number < self.data.manifest.num_samples:
            raise NotFoundError(
                f"there is no image {number}: {self.data.uri} has {self.data.manifest.num_samples}"
            )
        return await self._on(self._reading, self._read, number)

    def about(self) -> dict[str, Any]:
        """What is served, and what may be asked of it."""
        served = self.served
        return {
            "model": self.address,
            "version": served.version,
            "weights": served.weights,
            "problem": self._follower.problem,
            "index": self.data.uri,
            "data_manifest": self.data.manifest.digest,
            "num_images": len(served.index),
            "num_unreadable": served.index.num_unreadable,
            "embed_dim": served.model.config.embed_dim,
            "limits": {
                name: getattr(self.config, name)
                for name in (
                    *("max_body_mb", "max_items", "max_text_chars"),
                    *("max_sentences", "max_image_mp", "max_hits"),
                )
            },
        }

    async def exposition(self) -> bytes:
        """The metrics of all replicas, for Prometheus."""
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        return merged(await handle.broadcast("families").results_async(timeout_s=10))

    def families(self) -> tuple[str, list[Any]]:
        """This replica's name and metrics."""
        served = self.served
        self.metrics.describe(served.version, served.weights, len(served.index))
        return serve.get_replica_context().replica_id.unique_id, self.metrics.families()

    def _answer_together(self, queries: Sequence[Query]) -> list[Answer]:
        self.metrics.batched(len(queries))
        return answer(self.served, queries)

    async def _on(self, pool: ThreadPoolExecutor, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    def _check_text(self, text: str, name: str) -> None:
        if not text.strip():
            raise RequestError(f"{name} is empty")
        if len(text) > self.config.max_text_chars:
            raise RequestError(
                f"{name} has {len(text):,} characters, at most {self.config.max_text_chars:,} are "
                "taken"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"{name}: character {error.start} is half of one") from error

    def _uploaded(self, text: str, name: str, size_px: int) -> UploadedImage:
        """The image, its pixels as a tower of that size takes them."""
        try:
            encoded = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise RequestError(f"{name} is not base64: {error}") from error
        try:
            image = decode(encoded, max_pixels=int(self.config.max_image_mp * 1e6))
        except DataError as error:
            raise RequestError(f"{name}: {error}") from error
        return UploadedImage(encoded=encoded, pixels=centre_crop(image, size_px))
