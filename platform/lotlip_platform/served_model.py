"""A model with the index that it searches, replaced as one when its alias moves.

Shape suffixes: T texts and I images of one query, Q queries that search, D embedding
width, H hits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lotlip.data.manifest import Manifest, read_manifest
from lotlip.errors import CheckpointError, LotlipError
from lotlip.evaluate.embed import embed_pixels, embed_texts
from lotlip.evaluate.image_index import Found, ImageIndex, read_index
from lotlip.export import digest
from lotlip.images import centre_crop, decode
from lotlip.model import LoTLIP
from lotlip_platform import tracking
from lotlip_platform.features import feature_set
from lotlip_platform.registered_version import parsed, resolved
from lotlip_platform.registry import fetch
from lotlip_platform.storage import open_store
from lotlip_platform.tracking_address import one_line

_RETRY_S = 60.0
"""Between tries to load the same version."""
_LONGEST_PROBLEM = 300


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """The data set that is searched, as it was when serving began."""

    uri: str
    manifest: Manifest

    @classmethod
    def at(cls, uri: str) -> Indexed:
        """Raises: DataError."""
        store = open_store(uri)
        return cls(uri=store.uri, manifest=read_manifest(store))


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model and what it made of the images."""

    version: str
    """`models:/NAME/VERSION`, or the folder or run it was loaded from."""
    weights: str
    """The digest of its export."""
    model: LoTLIP
    index: ImageIndex


@dataclass(frozen=True, kw_only=True)
class UploadedImage:
    """An image of a request, decoded for the model that was served when it came."""

    encoded: bytes
    pixels: np.ndarray
    """[side, side, 3] uint8."""

    def at(self, size_px: int) -> np.ndarray:
        """Pixels for a model, which may have taken the other's place since and ask another size."""
        if len(self.pixels) == size_px:
            return self.pixels
        return centre_crop(decode(self.encoded), size_px)


@dataclass(frozen=True, kw_only=True)
class Query:
    """What to embed; with `num_hits`, images to search for the first text."""

    texts: Sequence[str] = ()
    images: Sequence[UploadedImage] = ()
    num_hits: int = 0

    @property
    def num_items(self) -> int:
        return len(self.texts) + len(self.images)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one model, not two of them, says to a query."""

    served: ServedModel
    texts_TD: Tensor
    images_ID: Tensor
    hits: Sequence[Found]
    excess_TH: Tensor
    """How much better each text fits each hit than it fits all images on average."""


def current_version(address: str) -> str:
    """Which version an alias stands for now; any other address as it is. Raises: LotlipError."""
    if not follows_alias(address):
        return address
    name, number = resolved(tracking.connect(), address)
    return f"models:/{name}/{number}"


def follows_alias(address: str) -> bool:
    """Whether what lies at a model's address may change. Raises: ConfigError."""
    return address.startswith("models:/") and bool(parsed(address)["alias"])


def load_served(version: str, data: Indexed, kept_in: str, gpus: float) -> ServedModel:
    """The model of a version with its index.

    Features that no model with the same image tower has had computed before are computed here: Ray
    may have no room for tasks beside those who serve. `kept_in` is the folder of all feature sets.

    Raises: LotlipError; also for a model whose features are not finite.
    """
    model = fetch(version)
    features = open_store(
        feature_set(
            model.image_tower,
            data.manifest,
            data=data.uri,
            kept_in=kept_in,
            gpus=gpus,
            on_progress=lambda done, total: None,
            in_tasks_of_ray=False,
        )
    )
    index = read_index(model, features, read_manifest(features, of_features=True))
    if not torch.isfinite(index.features_ND).all():
        raise CheckpointError(f"{version} embeds images to numbers that are not finite")
    weights = digest(model)
    if gpus:
        model = model.cuda()
    return ServedModel(version=version, weights=weights, model=model, index=index)


@torch.no_grad()
def answer(served: ServedModel, queries: Sequence[Query]) -> list[Answer]:
    """All texts in one pass of the model, all images in one, all searches in one of the index."""
    texts = embed_texts(served.model, [text for query in queries for text in query.texts])
    texts_of = texts.split([len(query.texts) for query in queries])
    size_px = served.model.config.image.image_size_px
    uploaded = [image.at(size_px) for query in queries for image in query.images]
    images = embed_pixels(served.model, uploaded)
    images_of = images.split([len(query.images) for query in queries])
    hits: dict[int, list[Found]] = {}
    if searches := [place for place, query in enumerate(queries) if query.num_hits]:
        most = max(query.num_hits for query in queries)
        described_QD = torch.stack([texts_of[place][0] for place in searches])
        hits = dict(zip(searches, served.index.search(described_QD, most), strict=True))
    answers = []
    for place, query in enumerate(queries):
        own = hits.get(place, [])[: query.num_hits]
        excess_TH = served.index.above_average(texts_of[place], [hit.place for hit in own])
        answers.append(
            Answer(
                served=served,
                texts_TD=texts_of[place],
                images_ID=images_of[place],
                hits=own,
                excess_TH=excess_TH,
            )
        )
    return answers


class Follower:
    """Keeps what is served at what an alias stands for.

    The next version is loaded beside the present one, then takes its place in one step: a request
    meets one of them, whole.
    """

    def __init__(
        self,
        address: str,
        first: str,
        load: Callable[[str], ServedModel],
        *,
        poll_s: float,
        on_reload: Callable[[str], None],
    ) -> None:
        """Load what `address` stands for now, or else version `first`.

        `on_reload` hears `loaded` or `failed` of each later try.
        """
        self._address, self._load, self._poll_s, self._on_reload = address, load, poll_s, on_reload
        self.problem = ""
        """Why the version that the alias stands for could not be loaded, if it couldn't."""
        self._failed, self._retry_at = "", 0.0
        try:
            self.served = load(current_version(address))
        except LotlipError as error:
            self.problem = one_line(error, _LONGEST_PROBLEM)
            self.served = load(first)
        if follows_alias(address):
            threading.Thread(target=self._follow, name="follower", daemon=True).start()

    def _follow(self) -> None:
        while True:
            time.sleep(self._poll_s)
            self._look()

    def _look(self) -> None:
        try:
            version = current_version(self._address)
        except LotlipError as error:
            self.problem = one_line(error, _LONGEST_PROBLEM)
            return
        if version == self.served.version:
            self.problem = ""
        elif version != self._failed or time.monotonic() >= self._retry_at:
            self._take(version)

    def _take(self, version: str) -> None:
        try:
            self.served = self._load(version)
        except Exception as error:  # noqa: BLE001 (whatever it is, what is served must go on)
            self.problem = one_line(error, _LONGEST_PROBLEM)
            self._failed, self._retry_at = version, time.monotonic() + _RETRY_S
            self._on_reload("failed")
            return
        self.problem, self._failed = "", ""
        self._on_reload("loaded")
