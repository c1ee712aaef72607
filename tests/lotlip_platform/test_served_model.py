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
from lotlip.errors import TrackingError
from lotlip.evaluate.embed import embed_images, embed_texts
from lotlip.evaluate.image_index import ImageIndex
from lotlip.images import centre_crop, decode
from lotlip_platform import served_model
from lotlip_platform.served_model import Follower, Query, ServedModel, UploadedImage, answer


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


def test_a_follower_tells_what_went_wrong_and_goes_on(served, monkeypatch) -> None:
    stands_for: list[Any] = ["models:/a/1"]

    def current(address: str) -> str:
        if isinstance(stands_for[0], Exception):
            raise stands_for[0]
        return stands_for[0]

    monkeypatch.setattr(served_model, "current_version", current)
    told: list[str] = []
    follower = Follower(
        "models:/a@champion",
        lambda version: replace(served, version=version),
        poll_s=1000,
        on_reload=told.append,
    )
    assert follower.is_alive
    follower._look()
    assert (follower.served.version, told) == ("models:/a/1", [])
    stands_for[0] = TrackingError("the server\nis away")
    follower._look()
    assert (follower.served.version, follower.problem) == ("models:/a/1", "the server is away")
    stands_for[0] = "models:/a/2"
    follower._look()
    assert (follower.served.version, follower.problem) == ("models:/a/2", "")
    assert told == ["failed", "loaded"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_follower_that_broke_is_told_of_to_ray_serve(served, monkeypatch) -> None:
    versions = iter(["models:/a/1"])
    monkeypatch.setattr(served_model, "current_version", lambda address: next(versions))
    follower = Follower(
        "models:/a@champion", lambda version: served, poll_s=0.01, on_reload=lambda outcome: None
    )
    follower._thread.join(timeout=10)
    assert not follower.is_alive
