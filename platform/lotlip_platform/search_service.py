"""What a replica does for a request: checks it, embeds it with others, searches, answers."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve

from lotlip.captions import split_sentences
from lotlip.data.sample import Sample
from lotlip.data.shards import read_sample
from lotlip.errors import DataError
from lotlip.images import centre_crop, decode
from lotlip_platform.batcher import Batcher
from lotlip_platform.search import cut_note
from lotlip_platform.search_api import NotFoundError, RequestError, build_app, printable
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
    load_served,
)
from lotlip_platform.storage import open_store

_DECODING_THREADS = 2
_READING_THREADS = 8
_MOST_READING = 32
"""Further images are refused: searches must not wait for a store that hangs."""
_READ_S = 20.0
_UPLOADED = ("JPEG", "PNG", "WEBP")
"""Pillow's other decoders are not for strangers."""


class SearchService:
    """A replica under Ray Serve: a model, its index, and the application that asks them."""

    def __init__(
        self,
        address: str,
        version: str,
        data: Indexed,
        kept_in: str,
        config: ServeConfig,
        environment: Mapping[str, str],
    ) -> None:
        """`version` is what `address` stood for when serving began; `kept_in` see `load_served`."""
        os.environ.update(environment)
        self.address, self.data, self.config = address, data, config
        self.metrics = Metrics()
        self._follower = Follower(
            address,
            version,
            lambda version: load_served(version, data, kept_in, config.gpus_per_replica),
            poll_s=config.poll_s,
            on_reload=self._reloaded,
        )
        self._describe()
        self._decoding = ThreadPoolExecutor(_DECODING_THREADS, "decode")
        self._reading = ThreadPoolExecutor(_READING_THREADS, "read")
        self._num_reading = 0
        self._answer = Batcher(
            self._answer_together, lambda query: query.num_items, config.max_batch_items
        )

    def __serve_build_asgi_app__(self) -> Any:
        return build_app(self)

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
        # One by one: behind one that is refused no other is decoded.
        uploaded = [
            await self._on(self._decoding, self._uploaded, encoded, f"images.{place}", size_px)
            for place, encoded in enumerate(images)
        ]
        found = await self._answer(Query(texts=texts, images=uploaded))
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
        sentences, note = await self._on(self._decoding, self._taken_apart, text)
        found = await self._answer(Query(texts=(text, *sentences), num_hits=num_hits))
        index = found.served.index
        excess_SH = found.excess_TH[1:]
        return {
            "version": found.served.version,
            "sentences": sentences,
            "note": note,
            "hits": [
                {
                    "key": printable(index.keys[hit.place]),
                    "caption": printable(index.captions[hit.place]),
                    "image": f"v1/images/{index.numbers[hit.place]}?of={self.data.manifest.digest}",
                    "score": hit.score,
                    "sentence": int(excess_SH[:, at].argmax()),
                    "sentence_scores": excess_SH[:, at].tolist(),
                }
                for at, hit in enumerate(found.hits)
            ],
        }

    async def image(self, number: int, of: str) -> Sample:
        """A sample of the data set whose manifest has the digest `of`; empty: of this one.

        Raises: NotFoundError, DataError.
        """
        if of not in ("", self.data.manifest.digest):
            raise NotFoundError(f"{of} is another data set: {self.data.uri} has another manifest")
        if not 0 <= number < self.data.manifest.num_samples:
            raise NotFoundError(
                f"there is no image {number}: {self.data.uri} has {self.data.manifest.num_samples}"
            )
        if self._num_reading >= _MOST_READING:
            raise DataError(f"{_MOST_READING} images of {self.data.uri} are being read: ask later")
        self._num_reading += 1
        try:
            reading = self._on(self._reading, self._read, number)
            return await asyncio.wait_for(reading, _READ_S)
        except TimeoutError as error:
            raise DataError(
                f"{self.data.uri} did not give image {number} within {_READ_S:g} s"
            ) from error
        finally:
            self._num_reading -= 1

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
        found = handle.broadcast("families").results_async(timeout_s=10, return_exceptions=True)
        # One that has just died has nothing to tell.
        return merged([one for one in await found if not isinstance(one, BaseException)])

    def families(self) -> tuple[str, list[Any]]:
        """This replica's name and metrics."""
        return serve.get_replica_context().replica_id.unique_id, self.metrics.families()

    def _reloaded(self, outcome: str) -> None:
        self.metrics.reloaded(outcome)
        self._describe()

    def _describe(self) -> None:
        served = self._follower.served
        self.metrics.describe(served.version, served.weights, len(served.index))

    def _read(self, number: int) -> Sample:
        return read_sample(open_store(self.data.uri), self.data.manifest, number)

    def _taken_apart(self, text: str) -> tuple[list[str], str]:
        """Its sentences, as many as are told apart, and what to tell of it."""
        sentences = split_sentences(text)[: self.config.max_sentences] or [text]
        return sentences, cut_note(self.served.model, text, "the description")

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
            most = int(self.config.max_image_mp * 1e6)
            image = decode(encoded, max_pixels=most, formats=_UPLOADED)
        except DataError as error:
            raise RequestError(f"{name}: {error}") from error
        return UploadedImage(encoded=encoded, pixels=centre_crop(image, size_px))
