"""A model with its index, and the follower of an alias, without HTTP."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lotlip
from lotlip.errors import CheckpointError, TrackingError
from lotlip.evaluate.embed import embed_images, embed_texts
from lotlip.evaluate.image_index import ImageIndex
from lotlip.export import save
from lotlip.images import centre_crop, decode
from lotlip_platform import served_model
from lotlip_platform.served_model import (
    Follower,
    Indexed,
    Query,
    ServedModel,
    UploadedImage,
    answer,
    load_served,
)


@pytest.fixture(scope="module")
def served(model_folder) -> ServedModel:
    model = lotlip.load(model_folder)
    features = torch.nn.functional.normalize(torch.randn(9, model.config.embed_dim), dim=1)
    index = ImageIndex(
        features_ND=features,
        numbers=tuple(range(9)),
        keys=tuple("abcdefghi"),
        captions=("",) * 9,
        num_unreadable=0,
    )
    return ServedModel(version="models:/a/1", weights="0", model=model, index=index)


def png(size: tuple[int, int], colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def uploaded(encoded: bytes, size_px: int) -> UploadedImage:
    return UploadedImage(encoded=encoded, pixels=centre_crop(decode(encoded), size_px))


def test_queries_answered_together_are_answered_as_alone(served: ServedModel) -> None:
    size_px = served.model.config.image.image_size_px
    images = [png((40, 30), "red"), png((33, 64), "blue")]
    queries = [
        Query(texts=("a castle", "a red castle. It is dark."), num_hits=2),
        Query(images=[uploaded(image, size_px) for image in images]),
        Query(texts=("two birds",)),
        Query(texts=("a lake",), num_hits=5),
    ]
    together = answer(served, queries)
    for query, found in zip(queries, together, strict=True):
        (alone,) = answer(served, [query])
        torch.testing.assert_close(found.texts_TD, alone.texts_TD)
        torch.testing.assert_close(found.images_ID, alone.images_ID)
        assert [hit.place for hit in found.hits] == [hit.place for hit in alone.hits]
    assert [len(found.hits) for found in together] == [2, 0, 0, 5]
    wanted = embed_texts(served.model, ["two birds"])
    torch.testing.assert_close(together[2].texts_TD, wanted)
    torch.testing.assert_close(together[1].images_ID, embed_images(served.model, images))


def test_an_image_decoded_for_a_model_of_another_size_is_decoded_again(served) -> None:
    size_px = served.model.config.image.image_size_px
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    query = Query(images=[uploaded(buffer.getvalue(), size_px + 16)])
    (found,) = answer(served, [query])
    wanted = embed_images(served.model, [buffer.getvalue()])
    torch.testing.assert_close(found.images_ID, wanted)


@pytest.fixture
def stands_for(monkeypatch: pytest.MonkeyPatch) -> list[str | Exception]:
    """What an alias stands for, or why nobody can say."""
    now: list[str | Exception] = ["models:/a/1"]

    def current(address: str) -> str:
        if isinstance(now[0], Exception):
            raise now[0]
        return now[0]

    monkeypatch.setattr(served_model, "current_version", current)
    return now


def follower_of(load: Any, told: list[str]) -> Follower:
    return Follower("models:/a@champion", "models:/a/0", load, poll_s=1000, on_reload=told.append)


def test_a_follower_tells_what_went_wrong_and_goes_on(served, stands_for) -> None:
    told: list[str] = []
    follower = follower_of(lambda version: replace(served, version=version), told)
    follower._look()
    assert (follower.served.version, told) == ("models:/a/1", [])
    stands_for[0] = TrackingError("the server\nis away")
    follower._look()
    assert (follower.served.version, follower.problem) == ("models:/a/1", "the server is away")
    stands_for[0] = "models:/a/2"
    follower._look()
    assert (follower.served.version, follower.problem) == ("models:/a/2", "")
    assert told == ["loaded"]


def test_a_version_that_does_not_load_is_tried_again_after_a_while(
    served, stands_for, monkeypatch
) -> None:
    told: list[str] = []
    tries: list[str] = []

    def load(version: str) -> ServedModel:
        tries.append(version)
        if version == "models:/a/2":
            raise MemoryError("no room for two")
        return replace(served, version=version)

    follower = follower_of(load, told)
    stands_for[0] = "models:/a/2"
    follower._look()
    follower._look()
    assert (follower.served.version, follower.problem) == ("models:/a/1", "no room for two")
    assert (tries, told) == (["models:/a/1", "models:/a/2"], ["failed"])
    follower._retry_at = 0.0
    follower._look()
    assert tries[2:] == ["models:/a/2"]
    stands_for[0] = "models:/a/3"
    follower._look()
    assert (follower.served.version, follower.problem) == ("models:/a/3", "")


def test_a_replica_starts_with_the_first_version_where_the_present_one_fails(served, stands_for):
    def load(version: str) -> ServedModel:
        if version == "models:/a/1":
            raise CheckpointError("it is half registered")
        return replace(served, version=version)

    follower = follower_of(load, [])
    assert (follower.served.version, follower.problem) == ("models:/a/0", "it is half registered")


def test_a_model_whose_features_are_not_finite_is_not_served(
    model_folder, scenes_folder, tmp_path
) -> None:
    model = lotlip.load(model_folder)
    with torch.no_grad():
        model.image_tower.pos_embed[:] = torch.nan
    save(model, tmp_path / "model")
    data = Indexed.at(str(scenes_folder))
    with pytest.raises(CheckpointError, match="not finite"):
        load_served(str(tmp_path / "model"), data, str(tmp_path / "features"), 0.0)
